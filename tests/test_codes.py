"""Models whose z are codes, used: trained, given a prior, drawn from, looked at; and what makes no sense refused."""

import json
import os
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_fixtures import flags, snapshot

from vae_jax import cli, data
from vae_jax.cli import prior, train
from vae_jax.cli.codes import _checked
from vae_jax.config import adapted, load_config, to_yaml
from vae_jax.errors import UserError
from vae_jax.evaluation import codes
from vae_jax.evaluation.evaluator import usage
from vae_jax.files.lock import writing
from vae_jax.keys import make_keys
from vae_jax.model.build import build
from vae_jax.objectives import OBJECTIVES, Objective
from vae_jax.posteriors import POSTERIORS, Posterior
from vae_jax.runs import reading
from vae_jax.runs.fit import fit
from vae_jax.runs.folder import Data, delete, read_config
from vae_jax.runs.identity import digest_of_all
from vae_jax.runs.reading import load
from vae_jax.sweeps import plan

K, PLACES = 16, (4,)
TINY = {
    "data.image_size": 8,
    "model.network": "mlp",
    "model.layers": [16],
    "model.latent": 3,
    "posterior.name": "codebook",
    "posterior.codes": K,
    "posterior.places": [4],
    "prior.name": "uniform",
    "train.epochs": 2,
    "train.batch_size": 128,
    "train.chunk_steps": 4,
    "output.figure_images": 4,
}
PRIOR = {"prior.name": "transformer", "prior.layers": 1, "prior.width": 8, "prior.heads": 2, "train.epochs": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of a codebook, without a prior."""
    path = tmp_path_factory.mktemp("codes") / "vq"
    assert cli.main(["train", "--out", str(path), *flags(**TINY)]) == 0
    return path


@pytest.fixture(scope="module")
def with_prior(folder, tmp_path_factory):
    """A copy of it with a prior."""
    path = tmp_path_factory.mktemp("codes") / "with_prior"
    shutil.copytree(folder, path)
    assert cli.main(["train-prior", str(path), *flags(**PRIOR)]) == 0
    return path


def evaluated(capsys, *arguments):
    capsys.readouterr()
    assert cli.main(["evaluate", *map(str, arguments), "--json"]) == 0
    found = capsys.readouterr()
    return json.loads(found.out), found.err


def refused(capsys, *arguments):
    capsys.readouterr()
    assert cli.main([*map(str, arguments)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_bound_is_of_uniform_codes_without_a_prior_and_of_the_priors_own_with_one(folder, with_prior, capsys):
    plain, _ = evaluated(capsys, folder)
    assert plain["kl"] == pytest.approx(4 * np.log(K), rel=1e-6)
    assert plain["bound"] == pytest.approx(plain["reconstruction"] + plain["kl"])
    assert plain["loss"] == pytest.approx(plain["bound"] + plain["commitment"], rel=1e-6)
    assert 1 < plain["perplexity"] <= plain["codes_used"] <= K
    learned, said = evaluated(capsys, with_prior)
    assert "prior: transformer, as trained in" in said
    assert learned["reconstruction"] == pytest.approx(plain["reconstruction"], rel=1e-6)  # the model has stayed
    assert learned["kl"] < plain["kl"]
    assert learned["loss"] == pytest.approx(learned["bound"], rel=1e-6)
    assert learned["codes_used"] == plain["codes_used"]
    assert (plain["prior"], learned["prior"]) == ("uniform", "transformer")
    assert "prior_left_out" not in {**plain, **learned}
    # Of a quantiser the mean is the only sample.
    assert evaluated(capsys, with_prior, "--latent", "mean")[0] == {**learned, "latent": "mean"}
    without, said = evaluated(capsys, with_prior, "--no-prior")
    assert without == {**plain, "prior_left_out": "--no-prior"}
    assert "prior" not in said


def test_what_evaluation_says_of_codes_is_what_encode_gives(folder, capsys):
    found, _ = evaluated(capsys, folder)
    assert cli.main(["encode", str(folder)]) == 0
    arrays = np.load(folder / "latents_test.npz")
    assert arrays["codes"].shape == (360, 4)
    assert arrays["mu"].shape == (360, 4, 3)
    counts = np.bincount(arrays["codes"].ravel(), minlength=K)
    shares = counts[counts > 0] / counts.sum()
    assert found["codes_used"] == (counts > 0).sum()
    assert found["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_codes_used"] == found["codes_used"]
    assert summary["units"]["perplexity"] == "codes"
    assert summary["units"]["commitment"] == "squared distance per image"


def test_perplexity_is_of_all_places_and_not_a_mean_over_parts():
    first, second = np.zeros((10, 2), int), np.ones((10, 2), int)
    assert usage(np.concatenate([first, second])) == {"codes_used": 2.0, "perplexity": pytest.approx(2.0)}
    assert usage(first)["perplexity"] == 1.0


def test_codes_decode_to_what_their_vectors_do(folder, tmp_path, capsys):
    model = reading.use(load(folder))
    encoded = model.encode(data.load(load(folder).config.data).test.images[:5])
    by_codes, by_vectors = model.decode(encoded["codes"]), model.decode(encoded["mu"])
    np.testing.assert_allclose(by_codes, by_vectors, rtol=1e-6, atol=1e-7)
    np.save(tmp_path / "mine.npy", np.asarray(encoded["codes"]))
    assert cli.main(["decode", str(folder), str(tmp_path / "mine.npy"), "--out", str(tmp_path / "mine.npz")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "mine.npz")["images"], by_codes, rtol=1e-6, atol=1e-7)
    np.save(tmp_path / "mine.npy", np.full((2, 4), K))
    line = refused(capsys, "decode", folder, tmp_path / "mine.npy")
    assert line == f"vae-jax: error: {tmp_path / 'mine.npy'}: expected codes from 0 to {K - 1}; found {K} to {K}"


@pytest.mark.parametrize(
    ("name", "arrays", "found"),
    [
        ("a.npy", np.full((2, 4, 3), np.nan), ": expected finite numbers; found 24 of 24 that are NaN or infinite"),
        ("a.npz", {"mu": np.full((1, 4, 3), -np.inf)}, ", mu: expected finite numbers; found 12 of 12 that are NaN or"),
        ("a.npz", {"z": np.full((1, 4, 3), 1e39)}, ", z: expected numbers of at most 3.4e+38; found 1e+39 to 1e+39"),
        ("a.npz", {"codes": np.full((1, 4), 0.5)}, ", codes: expected codes, whole numbers; found others, as 0.5"),
        (
            "a.npz",
            {"codes": np.zeros((1, 5), int)},
            ", codes: expected z (n, 4, 3) or codes (n, 4); found shape (1, 5)",
        ),
        ("a.npz", {"codes": np.zeros(4, int)}, ", codes: expected z or codes (n, …); found shape (4,)"),
        ("a.npz", {"x": np.zeros(3)}, ": expected an array named codes or mu or z; found x"),
        ("a.npz", {}, ": expected an array named codes or mu or z; found no array"),
    ],
)
def test_what_cannot_be_decoded_is_refused_by_its_name(folder, tmp_path, capsys, name, arrays, found):
    np.savez(tmp_path / name, **arrays) if name.endswith("z") else np.save(tmp_path / name, arrays)
    line = refused(capsys, "decode", folder, tmp_path / name, "--out", tmp_path / "out.npz")
    assert line.startswith(f"vae-jax: error: {tmp_path / name}{found}")
    assert not (tmp_path / "out.npz").exists()


def test_whole_numbers_stored_as_floats_are_codes_too(folder, tmp_path):
    chosen, model = np.arange(8).reshape(2, 4), reading.use(load(folder))
    np.savez(tmp_path / "floats.npz", codes=chosen.astype(float))
    out = tmp_path / "out.npz"
    assert cli.main(["decode", str(folder), str(tmp_path / "floats.npz"), "--out", str(out)]) == 0
    np.testing.assert_array_equal(np.load(out)["images"], model.decode(chosen))


def test_a_line_says_what_an_array_is_taken_for_that_fits_z_and_codes(tmp_path, capsys):
    options = {name: value for name, value in TINY.items() if not name.startswith("posterior")}
    network, _ = build(
        load_config(**options, **{"posterior.name": "bernoulli", "objective.name": "score_vae"}), (8, 8, 1)
    )
    bits = np.array([[0, 1, 1]])
    line = "a.npy: taken for {}; z and codes of this model have one shape"
    for z, kind, what in (
        (bits, "i", "codes, since they are whole numbers"),
        (bits.astype(float), "f", "z, since they are no whole numbers by type"),
    ):
        assert _checked("a.npy", "", z, network).dtype.kind == kind
        assert capsys.readouterr().err.splitlines() == [line.format(what)]
    assert _checked("a.npz, z", "z", bits, network).dtype.kind == "f"
    assert _checked("a.npz, codes", "codes", bits.astype(float), network).dtype.kind == "i"
    assert not capsys.readouterr().err


def test_samples_come_from_the_trained_prior_at_temperatures(with_prior, tmp_path, capsys):
    model = reading.use(load(with_prior / "prior"))
    codes_of = {}
    for temperature in (0.01, 1.0, 100.0):
        z = model.draw(jax.random.key(0), 300, temperature=temperature)
        own = {tuple(vector) for vector in np.asarray(z).reshape(-1, 3).round(5).tolist()}
        codes_of[temperature] = len(own)
    assert codes_of[0.01] <= 4 < codes_of[100.0]
    out = tmp_path / "samples.npz"
    arguments = ["sample", str(with_prior), "-n", "6", "--out", str(out)]
    assert cli.main([*arguments, "--temperature", "0.5,1", "--top-p", "0.9"]) == 0
    order = "6 images from every one of these, in this order: temperature 0.5, temperature 1\n"
    assert order in capsys.readouterr().err
    assert np.load(out)["images"].shape == (12, 8, 8, 1)
    assert cli.main(arguments) == 0
    np.testing.assert_array_equal(np.load(out)["images"], model.sample(jax.random.key(0), 6))
    for option, value in (("--temperature", "0"), ("--temperature", "a"), ("--top-p", "1.5")):
        assert option in refused(capsys, "sample", with_prior, option, value)


def test_a_prior_of_other_weights_is_left_out_with_a_word(with_prior, tmp_path, capsys):
    path = tmp_path / "longer"
    shutil.copytree(with_prior, path)
    assert cli.main(["train", "--out", str(path), "--resume", "--train.epochs", "3"]) == 0
    found, said = evaluated(capsys, path)
    assert "is left out, since it was trained for other weights of the run" in said
    assert found["prior"] == "uniform"
    assert found["prior_left_out"] == (
        f"it was trained for other weights of the run; `vae-jax train-prior {path} --overwrite` trains another"
    )
    assert found["kl"] == pytest.approx(4 * np.log(K), rel=1e-6)
    assert cli.main(["train-prior", str(path), "--overwrite", *flags(**PRIOR)]) == 0
    assert evaluated(capsys, path)[0]["kl"] < found["kl"]
    assert cli.main(["train", "--out", str(path), "--resume", "--train.epochs", "4"]) == 0
    assert refused(capsys, "train-prior", path, "--resume") == (
        f"vae-jax: error: {path / 'prior'}: expected a prior of this run's model as it is now; found that it was "
        f"trained for other weights of the run; `vae-jax train-prior {path} --overwrite` trains another in its place"
    )
    with writing(path / "prior"):
        before = snapshot(path)
        assert refused(capsys, "train", "--out", path, "--overwrite", *flags(**TINY)) == (
            f"vae-jax: error: {path / 'prior'}: process {os.getpid()} is writing into it; wait until it ends, or stop "
            f"it"
        )
        with pytest.raises(UserError, match="is writing into it"):
            delete(path)
        assert snapshot(path) == before
    assert cli.main(["train", "--out", str(path), "--overwrite", *flags(**TINY)]) == 0
    assert not (path / "prior").exists()


def test_a_sweep_is_not_deleted_while_a_prior_of_its_runs_is_being_trained(tmp_path, monkeypatch):
    for name in ("first", "second"):
        (tmp_path / name / "prior").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("seed: 1\n")
    monkeypatch.setattr(plan, "read_sweep", lambda folder: None)
    monkeypatch.setattr(plan, "members_of", lambda found: [SimpleNamespace(name=name) for name in ("first", "second")])
    with writing(tmp_path / "second" / "prior"):
        before = snapshot(tmp_path)
        with pytest.raises(UserError, match=r"second/prior: process \d+ is writing into it"):
            plan.delete_sweep(tmp_path)
        assert snapshot(tmp_path) == before


@pytest.fixture
def copied(with_prior, tmp_path):
    """A copy of the run with a prior."""
    shutil.copytree(with_prior, tmp_path / "run")
    return tmp_path / "run"


def edit(folder, **changes):
    """Changes options in a run's config.yaml."""
    (folder / "config.yaml").write_text(to_yaml(adapted(read_config(folder), **changes)))


def test_nothing_but_the_prior_is_taken_from_its_folder(with_prior, copied, capsys):
    learned, _ = evaluated(capsys, with_prior)
    edit(copied / "prior", **{"seed": 7, "output.figure_images": 9})
    assert evaluated(capsys, copied)[0] == learned
    edit(copied / "prior", **{"posterior.weight": 3.0})
    found, said = evaluated(capsys, copied)
    why = f"its posterior.weight is 3.0, and the run's 1.0; `vae-jax train-prior {copied} --overwrite` trains another"
    assert f"vae-jax: the prior in {copied / 'prior'} is left out, since {why}" in said.splitlines()
    assert (found["prior"], found["prior_left_out"]) == ("uniform", why)
    assert found == {**evaluated(capsys, with_prior, "--no-prior")[0], "prior_left_out": why}


def test_a_prior_in_a_copied_folder_does_not_go_on(with_prior, copied, capsys):
    before = snapshot(copied)
    assert refused(capsys, "train-prior", copied, "--resume") == (
        f"vae-jax: error: {copied / 'prior'}: expected a prior of this run's model as it is now; found that it was "
        f"trained for {with_prior}; `vae-jax train-prior {copied} --overwrite` trains another in its place"
    )
    assert snapshot(copied) == before


def test_a_prior_that_is_a_link_is_refused(with_prior, copied, capsys):
    shutil.rmtree(copied / "prior")
    (copied / "prior").symlink_to(with_prior / "prior")
    before = snapshot(with_prior)
    why = (
        f"{copied / 'prior'}: expected a folder of the run's own, found a link to {with_prior / 'prior'}; nothing is "
        f"written through a link in a run"
    )
    for how in ((), ("--overwrite",), ("--resume",)):
        assert refused(capsys, "train-prior", copied, *how) == f"vae-jax: error: {why}"
    assert evaluated(capsys, copied)[0]["prior_left_out"].startswith(why)
    assert snapshot(with_prior) == before


def test_the_prior_is_of_the_latest_weights_and_that_is_said_of_the_best(with_prior, capsys, monkeypatch):
    def other(folder, checkpoint="latest", *arguments, **named):
        trained = load(folder, checkpoint, *arguments, **named)
        if checkpoint == "latest" or folder.name == "prior":
            return trained
        params = jax.tree.map(lambda leaf: 1.1 * leaf, trained.state.variables.params)
        return trained._replace(state=trained.state._replace(variables=trained.state.variables._replace(params=params)))

    monkeypatch.setattr(reading, "load", other)
    found, _ = evaluated(capsys, with_prior, "--checkpoint", "best")
    assert found["prior_left_out"] == (
        "it is of the run's latest weights, not of its best; --checkpoint latest takes both, --no-prior looks for none"
    )


@pytest.mark.parametrize("damage", ["empty", "gone"])
def test_a_damaged_prior_is_trained_again_with_overwrite(copied, capsys, damage):
    config = copied / "prior" / "config.yaml"
    if damage == "empty":
        config.write_text("")
        shutil.rmtree(copied / "prior" / "checkpoints")
        what = f"{config}: expected options by section, as in `train: {{epochs: 5}}`; found nothing"
    else:
        config.unlink()
        what = f"{copied / 'prior'}: expected a run folder with a config.yaml in it, found none"
    before = snapshot(copied)
    assert what in evaluated(capsys, copied)[0]["prior_left_out"]
    for how in ((), ("--resume",)):
        assert refused(capsys, "train-prior", copied, *how) == (
            f"vae-jax: error: {what}; `vae-jax train-prior {copied} --overwrite` trains another in its place"
        )
    assert snapshot(copied) == before
    assert cli.main(["train-prior", str(copied), "--overwrite", *flags(**{**PRIOR, "train.epochs": 1})]) == 0
    assert evaluated(capsys, copied)[0]["prior"] == "transformer"


def test_a_prior_has_no_prior(with_prior, capsys):
    assert refused(capsys, "train-prior", with_prior / "prior") == (
        f"vae-jax: error: {with_prior / 'prior'}: expected a run of a model; found one of a prior, that of {with_prior}"
    )


def test_classes_of_a_priors_data_are_the_runs_by_name(folder, monkeypatch):
    config = adapted(load(folder).config, **{"model.classes": 10})
    images = data.load(config.data)
    monkeypatch.setattr(
        prior, "read_data", lambda path: Data(images.name, digest_of_all(config, images), images.class_names)
    )
    others = images.renumbered(images.class_names[::-1])
    assert (others.train.labels != images.train.labels).any()
    taken = prior._check_data(config, config, others, folder)
    np.testing.assert_array_equal(taken.train.labels, images.train.labels)
    assert taken.class_names == images.class_names


def test_a_prior_is_a_run_that_goes_on_exactly_and_changes_nothing_but_itself(folder, tmp_path):
    trained = load(folder)
    images = data.load(trained.config.data)
    config = load_config(**{**TINY, **PRIOR, "objective.name": "prior", "train.start": str(folder)})
    whole = fit(config, images)
    states = []
    fit(config, images, on_chunk=lambda state, history: states.append((jax.device_get(state), list(history))))
    for state, history in states[:: len(states) - 1]:
        again = fit(config, images, resume=(jax.tree.map(jax.numpy.asarray, state), history))
        jax.tree.map(np.testing.assert_array_equal, again.state, whole.state)
    for part in ("encoder", "decoder"):
        jax.tree.map(np.testing.assert_array_equal, whole.variables.params[part], trained.variables.params[part])
    jax.tree.map(np.testing.assert_array_equal, whole.variables.state, trained.variables.state)
    assert whole.history[-1]["train_kl"] < whole.history[0]["train_kl"]


def test_a_flow_is_fitted_to_a_gaussian_posterior_too(tmp_path, capsys):
    plain = {name: value for name, value in TINY.items() if not name.startswith(("posterior", "prior"))}
    assert cli.main(["train", "--out", str(tmp_path / "run"), *flags(**plain)]) == 0
    before, _ = evaluated(capsys, tmp_path / "run")
    assert cli.main(["train-prior", str(tmp_path / "run"), "--train.epochs", "20"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert "prior.name: flow, the usual one for z that are real numbers" in said
    after, _ = evaluated(capsys, tmp_path / "run")
    assert refused(capsys, "evaluate", tmp_path / "run", "--latent", "mean") == (
        "vae-jax: error: --latent: expected sample with the trained prior, flow, since the KL is made of densities at "
        "samples of z; found mean; --no-prior evaluates the run's own objective, vae"
    )
    assert evaluated(capsys, tmp_path / "run", "--latent", "mean", "--no-prior")[0]["prior"] == "standard_normal"
    assert after["reconstruction"] == pytest.approx(before["reconstruction"], abs=0.5)  # of one sample each
    assert after["kl"] < before["kl"]
    line = refused(capsys, "train-prior", tmp_path / "run", "--overwrite", "--prior.name", "standard_normal")
    assert "prior.name: expected one with parameters of its own with objective prior" in line


def test_how_codes_are_used_is_drawn_with_their_nearest_images(folder, tmp_path):
    from PIL import Image

    trained = load(folder)
    network, _ = build(trained.config, trained.image_shape)
    images = data.load(trained.config.data).test.images
    use = codes.use_of_codes(network, trained.variables, make_keys(0).evaluate, images)
    assert use.codes.shape == use.distances.shape == (360, 4)
    assert use.counts.sum() == use.codes.size
    code = int(use.codes[0, 0])
    found = use.nearest(code, 5)
    assert len({image for image, _ in found}) == len(found) == min(5, (use.codes == code).any(1).sum())
    distances = [use.distances[place] for place in found]
    assert distances == sorted(distances)
    assert distances[0] == use.distances[use.codes == code].min()
    assert all(use.codes[place] == code for place in found)
    out = tmp_path / "codes.png"
    assert cli.main(["codes", str(folder), "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.width > 500


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["traverse"], "RUN: expected a model whose z are vectors; found codes, 16 at [4] places, between which"),
        (["evaluate", "--nll-samples", "5"], "--nll-samples: expected a posterior with samples to weigh; found"),
        (["evaluate", "--ais", "5"], "--ais: expected a posterior with samples to weigh; found posterior codebook"),
        (["evaluate", "--diagnostics"], "--diagnostics: expected a model whose z are vectors; found codes, 16 at"),
        (["sample", "--from", "gmm"], "error: --from: expected a model whose z are vectors; found codes"),
        (
            ["sample", "--temperature", "0.5"],
            "--temperature: expected a trained prior over codes; found uniform, of which all codes are as likely; `vae",
        ),
        (["sample", "--top-p", "0.5"], "--top-p: expected a trained prior over codes; found uniform, of which"),
        (["train-prior", "--prior.name", "flow"], "prior.name: expected one over the posterior's codes"),
        (["train-prior", "--prior.name", "uniform"], "prior.name: expected one with parameters of its own"),
        (
            ["train-prior", "--model.latent", "5"],
            "model.latent: expected the run's own, 3, of which the prior is trained; found 5",
        ),
        (
            ["train-prior", "--data.source", "mnist"],
            "data.source: expected the run's own, digits, of which the prior is trained; found mnist",
        ),
        (
            ["train-prior", "--objective.name", "autoencoder"],
            "objective.name: expected prior, with which a prior is trained; found autoencoder",
        ),
        (
            ["train-prior", "--config", "digits", "--prior.layers", "2"],
            "--config: expected options alone, as --prior.name, since the model is the run's; found digits",
        ),
    ],
)
def test_what_makes_no_sense_with_codes_is_refused_with_the_reason(folder, capsys, arguments, found):
    assert found in refused(capsys, arguments[0], folder, *arguments[1:])
    assert not (folder / "prior").exists()


def test_what_lies_between_two_images_are_mixtures_of_vectors_and_it_is_said(folder, tmp_path, capsys):
    out = tmp_path / "between.npz"
    assert cli.main(["interpolate", str(folder), "-n", "2", "--steps", "3", "--out", str(out)]) == 0
    assert "mixtures of their codes' vectors, which are decoded without rounding" in capsys.readouterr().err
    assert np.load(out)["images"].shape == (6, 8, 8, 1)


@pytest.mark.parametrize("kind", ["vector", "sequence", "categories"])
def test_codes_of_data_that_are_no_images(kind, tmp_path, capsys):
    random = np.random.RandomState(0)
    arrays = {
        "vector": random.randn(200, 5),
        "sequence": random.randn(200, 6, 2),
        "categories": random.randint(0, 3, (200, 6)),
    }
    np.save(tmp_path / "mine.npy", arrays[kind])
    own = {
        "data.source": "array",
        "data.path": tmp_path / "mine.npy",
        "data.kind": kind,
        "likelihood.name": "categorical" if kind == "categories" else "gaussian",
    }
    options = {name: value for name, value in TINY.items() if name != "data.image_size" and "output" not in name}
    assert cli.main(["train", "--out", str(tmp_path / "run"), *flags(**options, **own)]) == 0
    # Other data than the run's are refused, also at their place; the same ones may lie elsewhere.
    np.save(tmp_path / "same.npy", arrays[kind])
    for name in ("other", "mine"):
        np.save(tmp_path / f"{name}.npy", arrays[kind][::-1])
        place = tmp_path / f"{name}.npy"
        line = refused(capsys, "train-prior", tmp_path / "run", "--data.path", place, *flags(**PRIOR))
        assert line.startswith(
            f"vae-jax: error: --data.path {place}: expected the data that {tmp_path / 'run'} was trained on, "
        )
        assert not (tmp_path / "run" / "prior").exists()
    own_place = ["--data.path", str(tmp_path / "same.npy")]
    assert cli.main(["train-prior", str(tmp_path / "run"), *own_place, *flags(**PRIOR)]) == 0
    np.save(tmp_path / "mine.npy", arrays[kind])
    (tmp_path / "same.npy").unlink()  # where the run's own data lie its own configuration says
    found, _ = evaluated(capsys, tmp_path / "run")
    assert found["codes_used"] > 1
    assert cli.main(["sample", str(tmp_path / "run"), "-n", "3"]) == 0
    assert cli.main(["codes", str(tmp_path / "run")]) == 0


def test_averages_of_the_weights_and_conditional_models(tmp_path):
    config = load_config(**{**TINY, "train.ema_decay": 0.9, "model.classes": 10, "posterior.update": "gradient"})
    images = data.load(config.data)
    trained = fit(config, images)
    assert not np.allclose(
        trained.variables.params["posterior"]["codes"], trained.state.variables.params["posterior"]["codes"]
    )
    joint = replace(config, prior=load_config(**{**TINY, **PRIOR}).prior)  # in one phase with everything else
    trained = fit(joint, images)
    assert trained.history[-1]["test_kl"] < 4 * np.log(K)
    model = reading.use(trained)
    pictures = model.sample(jax.random.key(0), 5, np.arange(5))
    assert pictures.shape == (5, 8, 8, 1)
    assert np.isfinite(np.asarray(pictures)).all()
    with pytest.raises(UserError, match="labels"):
        model.sample(jax.random.key(0), 5)


def test_help_shows_the_runs_own_values_and_what_may_be_changed(folder, capsys):
    def shown(*arguments, asked="--help-all"):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            cli.main(["train-prior", *map(str, arguments), asked])
        text = capsys.readouterr().out
        return " ".join(text.split()), set(re.findall(r"^  --([a-z]+\.[a-z_0-9]+)", text, re.MULTILINE))

    text, names = shown(folder)
    assert {"prior.layers", "prior.heads", "train.epochs", "data.path", "optimizer.name"} < names
    kept = ("model", "posterior", "likelihood", "objective")
    assert not [name for name in names if name.startswith(kept) or name in ("train.start", "data.source")]
    assert "--train.batch_size VALUE images in a batch; the last, smaller batch of an epoch is used too (" in text
    assert "(a whole number in [1, 1000000]; 128)" in text  # the run's
    assert "--config" not in text
    text, names = shown(folder, "--prior.name", "pixelcnn")
    assert "prior.kernel" in names
    assert "prior.layers" in shown(asked="--help")[1]


def test_stopping_names_the_command_that_goes_on(copied, capsys, monkeypatch):
    shutil.rmtree(copied / "prior")
    monkeypatch.setattr(train, "stop_requested", lambda received: True)
    assert cli.main(["train-prior", str(copied), *flags(**PRIOR)]) == 128 + 15
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"vae-jax: stopped before the first step; `vae-jax train-prior {copied} --resume` goes on from there"
    )


@pytest.mark.parametrize("quantiser", ["codebook", "lfq", "fsq"])
def test_more_places_than_memory_holds_are_refused_in_a_line(quantiser, tmp_path, capsys):
    options = {name: value for name, value in TINY.items() if not name.startswith(("posterior", "model.latent"))}
    own = {"posterior.name": quantiser, "posterior.places": [65536, 65536], "model.latent": 4}
    line = refused(capsys, "train", "--out", tmp_path / "run", *flags(**options, **own))
    assert re.fullmatch(
        r"vae-jax: error: model: training its 56\d,\d{3},\d{3},\d{3} parameters: expected to fit into the .*", line
    )


@pytest.mark.parametrize("change", [{"objective.beta": 2.0}, {"objective.schedule": "warmup"}])
def test_a_weight_of_a_kl_that_is_the_same_for_every_image_is_refused(change):
    (option, value), usual = *change.items(), {"objective.beta": "1.0"}.get(*change, "constant")
    with pytest.raises(
        UserError,
        match=rf"^{option}: expected {usual} with posterior codebook and prior uniform, whose KL is the same for every "
        rf"image, so that its weight changes nothing in training; found {value}$",
    ):
        build(load_config(**{**TINY, **change}), (8, 8, 1))
    build(load_config(**{**TINY, **PRIOR, **change}), (8, 8, 1))  # where the prior learns, its KL has a weight


def test_a_prior_with_a_logit_for_each_of_very_many_codes_is_refused():
    options = {name: value for name, value in TINY.items() if name != "posterior.codes"}
    config = load_config(**{**options, **PRIOR, "posterior.name": "lfq", "model.latent": 20})
    with pytest.raises(
        UserError, match=r"prior\.name: expected uniform over more than 65,536 codes .* 1,048,576 codes"
    ):
        build(config, (8, 8, 1))


# --- A prior of its own run -------------------------------------------------------------------------------------------


def test_a_prior_for_a_run_whose_objective_has_networks_of_its_own_is_used(tmp_path, capsys):
    options = {name: value for name, value in TINY.items() if not name.startswith("posterior")}
    own = {"posterior.name": "bernoulli", "objective.name": "relax_vae", "train.epochs": 1}
    folder = tmp_path / "run"
    assert cli.main(["train", "--out", str(folder), *flags(**{**options, **own})]) == 0
    # With no prior yet there is nothing to go on with.
    assert cli.main(["train-prior", str(folder), "--resume", *flags(**{**PRIOR, "train.epochs": 1})]) == 0
    sampled, said = evaluated(capsys, folder)
    assert "prior: transformer, as trained in" in said
    assert sampled["bound"] == pytest.approx(sampled["reconstruction"] + sampled["kl"])
    shutil.rmtree(folder / "prior")
    assert "bound" not in evaluated(capsys, folder, "--latent", "mean")[0]  # which no single z gives


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"objective.name": "autoencoder"},
            "expected a model with a prior; found objective autoencoder, which has none; `vae-jax sample",
        ),
        ({"train.start": "elsewhere"}, "train.start: expected"),
        ({"posterior.codes": 8}, "posterior.codes: expected the run's own, 16, of which the prior is trained; found 8"),
    ],
)
def test_a_prior_is_of_the_runs_model_alone(folder, tmp_path, capsys, changes, found):
    run_folder, more = folder, changes
    if "objective.name" in changes:
        run_folder, more = tmp_path / "run", {}
        plain = {name: value for name, value in TINY.items() if not name.startswith(("posterior", "prior"))}
        assert cli.main(["train", "--out", str(run_folder), *flags(**{**plain, **changes, "train.epochs": 1})]) == 0
        more = {"prior.name": "flow"}
    assert found in refused(capsys, "train-prior", run_folder, *flags(**more))
    assert not (run_folder / "prior" / "metrics.jsonl").exists()


def test_a_prior_goes_on_though_a_users_file_has_changed_since(tmp_path):
    path, folder = tmp_path / "own.py", tmp_path / "run"
    path.write_text("from vae_jax.posteriors.codebook import CodebookOptions, codebook\n\n\n"
                    "def own(options: CodebookOptions, shapes):\n    return codebook(options, shapes)\n")  # fmt: skip
    options = {**TINY, "posterior.name": f"{path}:own", "train.epochs": 1}
    assert cli.main(["train", "--out", str(folder), *flags(**options)]) == 0
    path.write_text(path.read_text() + "\n\nMORE = 1\n")
    assert cli.main(["train-prior", str(folder), *flags(**{**PRIOR, "train.schedule": "constant"})]) == 0
    assert cli.main(["train-prior", str(folder), "--resume", "--train.epochs", "3"]) == 0
    assert load(folder / "prior").history[-1]["epoch"] == 3


def test_codes_are_those_that_were_chosen_and_not_searched_for_again(tmp_path):
    """Of several stages a sum may be nearest to another row of codes."""
    config = load_config(**{**TINY, "posterior.stages": 8, "posterior.codes": 16, "train.epochs": 1})
    images = data.load(config.data)
    trained = fit(config, images)
    network, _ = build(trained.config, trained.image_shape)
    model = reading.use(trained)
    encoded = model.encode(images.test.images)
    np.testing.assert_allclose(model.decode(encoded["codes"]), model.decode(encoded["mu"]), rtol=1e-4, atol=1e-5)
    use = codes.use_of_codes(network, trained.variables, make_keys(0).evaluate, images.test.images)
    numbered = np.asarray(encoded["codes"]) + 16 * np.arange(8)
    np.testing.assert_array_equal(use.codes, numbered.reshape(len(use.codes), -1))


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ({"temperature": -1}, r"temperature: expected a number in \[0, inf\); found -1"),
        ({"temperature": float("nan")}, "temperature: expected a number"),
        ({"temperature": "x"}, "temperature: expected a number"),
        ({"top_p": 0}, r"top_p: expected a number in \(0, 1\]; found 0"),
        ({"top_p": 7}, "top_p: expected a number"),
    ],
)
def test_ways_of_drawing_that_are_none_are_refused(with_prior, how, found):
    model = reading.use(load(with_prior / "prior"))
    with pytest.raises(UserError, match=found):
        model.draw(jax.random.key(0), 2, **how)


def test_a_prior_beside_relaxed_samples_is_refused_since_no_gradient_would_reach_them():
    options = {name: value for name, value in TINY.items() if not name.startswith("posterior")}
    config = load_config(**{**options, **PRIOR, "posterior.name": "categorical"})
    with pytest.raises(
        UserError, match="expected uniform with posterior categorical, which gets no gradient from a prior over codes"
    ):
        build(config, (8, 8, 1))
    options = {**options, "posterior.name": "categorical", "posterior.kl": "relaxed", "objective.name": "prior"}
    build(load_config(**{**options, **PRIOR}), (8, 8, 1))  # whose model stays as in evaluation


@pytest.mark.parametrize("figure", ["codes", "perplexity"])
def test_figures_of_codes_and_an_objectives_own_are_said_apart(figure, monkeypatch):
    def terms(key, model, images, options):
        draw = model.draw(key, images)
        return {"loss": -draw.log_px + draw.cost, figure: images.mean((1, 2, 3))}

    monkeypatch.setitem(OBJECTIVES, "own", Objective(terms))
    config = load_config(**{**TINY, "train.epochs": 1})
    config = replace(config, objective=replace(config.objective, name="own"))
    images = data.load(config.data)
    if figure != "codes":
        with pytest.raises(UserError, match="expected figures not named seconds, codes_used, perplexity or ending"):
            fit(config, images)
        return
    history = fit(config, images).history
    assert history[-1]["test_codes"] == pytest.approx(images.test.images.mean() / 255, rel=1e-5)
    assert history[-1]["test_codes_used"] > 1


@pytest.mark.parametrize("network", ["convolutional", "residual"])
def test_heads_of_any_shape_are_vectors_or_refused(network, monkeypatch):
    def own(heads, shape):
        def transform(params, noise, heads):
            return jnp.zeros(noise.shape) + 0 * sum(head.sum() for head in heads.values()), jnp.zeros(noise.shape[:1])

        return lambda options, shapes: Posterior(heads, transform, shape=shape)

    layers = {"model.network": network, "model.channels": [4, 4]} | (
        {"model.paddings": [1, 1], "model.kernel": 4} if network == "convolutional" else {}
    )
    config = load_config(**{"data.image_size": 8, **layers, "model.latent": 3})
    config = replace(config, posterior=replace(config.posterior, name="own"))
    monkeypatch.setitem(POSTERIORS, "own", own({"mu": 3, "L": (3, 3)}, None))
    made, _ = build(config, (8, 8, 1))
    images = jnp.zeros((2, 8, 8, 1))
    heads = made.apply(made.init(jax.random.key(0)), lambda model: model.encode(images))[0]
    assert heads["L"].shape == (2, 3, 3)
    for heads in ({"mu": (2, 2, 3), "s": 3}, {"mu": (2, 2, 3), "s": (3, 3)}):
        monkeypatch.setitem(POSTERIORS, "own", own(heads, (2, 2, 3)))
        with pytest.raises(
            UserError, match=rf"since the posterior has a head of shape .* found {network}, which gives"
        ):
            build(config, (8, 8, 1))
