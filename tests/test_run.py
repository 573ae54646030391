"""Run folders: what they hold, that an interrupted run goes on as if nothing had happened, what is left alone."""

import json
import math
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from run_fixtures import compiled_once, snapshot

from vae_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OutputConfig,
    TrainConfig,
    load_config,
    with_options,
)
from vae_jax.data import Dataset, Split, load
from vae_jax.device import memory
from vae_jax.device.devices import cores
from vae_jax.errors import Stopped, UserError
from vae_jax.evaluation.evaluator import make_evaluator, means
from vae_jax.keys import make_keys, step_key, step_keys
from vae_jax.model.build import build
from vae_jax.objectives import OBJECTIVES, Objective
from vae_jax.pictures.sheet import pairs
from vae_jax.runs import reading
from vae_jax.runs.folder import origin, read_config, read_data
from vae_jax.runs.identity import digest_of, digest_of_all
from vae_jax.runs.reading import _epochs, use
from vae_jax.runs.recorder import Recorder
from vae_jax.runs.train import train
from vae_jax.sweeps.plan import Sweep
from vae_jax.sweeps.sweep import run

CONFIG = Config(
    data=DataConfig(image_size=8, channels=1),
    model=ModelConfig(channels=(4, 8), latent=3, hidden=16),
    train=TrainConfig(epochs=3, batch_size=20, chunk_steps=2),
    output=OutputConfig(keep_checkpoints=1, figure_images=4),
)
STEPS = 6
TIMING = {"images_per_second", "train_seconds", "compile_seconds", "chunk_steps"}


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    with compiled_once(tmp_path_factory.getbasetemp() / "compiled"):
        yield


@pytest.fixture(scope="module")
def data():
    digits = load(CONFIG.data)

    def take(first, last):
        return Split(digits.train.images[first:last], digits.train.labels[first:last])

    return Dataset("digits", take(0, 20 * STEPS), take(200, 240), class_names=digits.class_names)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of an undisturbed run, and what it gave."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, train(CONFIG, data, folder)


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of the undisturbed run's folder."""
    return shutil.copytree(whole[0], tmp_path / "run")


def with_train(**changes):
    return replace(CONFIG, train=replace(CONFIG.train, **changes))


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMING} for line in lines]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def refused(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    return str(caught.value)


class Killed(Exception):
    """Ends a run as a kill would."""


def killed(folder, data, config, *, epoch, step):
    """Trains until so many steps of an epoch are done; 0 ends it after the epoch before.

    Each call of the loop, a third of an epoch, is followed by a checkpoint.
    """
    config = replace(config, output=replace(config.output, checkpoint_minutes=1e-9))

    def on_progress(progress):
        if (progress.epoch, progress.step) == (epoch, step):
            raise Killed

    def on_epoch(figures, state):
        if step == 0 and figures["epoch"] == epoch - 1:
            raise Killed

    with pytest.raises(Killed):
        train(config, data, folder, on_progress=on_progress, on_epoch=on_epoch)


# --- What a run leaves -----------------------------------------------------------------------------------------------


def test_a_run_keeps_the_size_and_channels_of_its_images(tmp_path):
    """Where its configuration sets none, whatever becomes of the data."""
    config = Config(
        data=DataConfig("array", path=str(tmp_path / "x.npy"), validation=4.0),
        model=ModelConfig(network="mlp", layers=(4,), latent=2),
        train=TrainConfig(epochs=1, batch_size=8),
        output=OutputConfig(figure_images=4),
    )
    np.save(tmp_path / "x.npy", np.random.RandomState(0).randint(0, 256, (24, 6, 6, 3)).astype(np.uint8))
    data = load(config.data)
    assert data.image_shape == (6, 6, 3)
    trained = train(config, data, tmp_path / "run")
    assert (trained.config.data.image_size, trained.config.data.channels) == (6, 3)
    assert trained.config == replace(config, data=trained.config.data)
    train(config, data, tmp_path / "run", resume=True)
    (tmp_path / "x.npy").unlink()
    loaded = reading.load(tmp_path / "run")
    assert (loaded.config, loaded.image_shape) == (trained.config, (6, 6, 3))


def test_contents(whole, data):
    folder, trained = whole
    assert load_config(folder / "config.yaml") == CONFIG
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == trained.history
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    found = summary(folder)
    for name in ("train_loss", "test_loss", "test_reconstruction", "test_kl"):
        assert found[name] == lines[-1][name]
    assert found["test_loss"] == pytest.approx(found["test_reconstruction"] + found["test_kl"], rel=1e-6)
    assert found["best_loss"] == min(line["test_loss"] for line in lines)
    assert found["best_by"] == "test_loss"
    assert found["seed"] == 0
    assert found["epochs"] == 3
    assert found["train_images"] == 120
    assert found["test_images"] == 40
    assert found["images_per_second"] > 0
    assert found["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(trained.state.variables.params))
    assert found["versions"]["jax"] == jax.__version__
    assert found["device"].startswith("cpu")
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {"loss.png", "samples.png", *(f"reconstructions_epoch_000{epoch}.png" for epoch in (1, 2, 3))}
    assert not list(folder.rglob("*.tmp"))


def test_a_run_notes_its_data_and_their_classes(whole, data):
    folder, trained = whole
    noted = json.loads((folder / "data.json").read_text())
    assert noted.pop("run") == read_data(folder).run != ""
    assert noted == {"name": "digits", "digest": digest_of_all(CONFIG, data), "class_names": list("0123456789")}
    assert summary(folder)["class_names"] == list("0123456789")
    assert trained.class_names == reading.load(folder).class_names == tuple("0123456789")


# What the files of a run may say wrongly, and the line on it.
MISWRITTEN = [
    ("data.json", "[" * 100_000, "expected JSON without deep nesting; found hundreds of brackets in one another"),
    ("data.json", "[]", "expected an object; found a list of 0"),
    ("data.json", '{"name": 1e999, "digest": "0", "class_names": null}', "name: expected text; found Infinity"),
    ("data.json", '{"name": "a", "digest": [1], "class_names": null}', "digest: expected text; found a list of 1"),
    ("data.json", '{"name": "a", "digest": "0", "class_names": "abc"}', "class_names: expected a list or null; found"),
    ("data.json", '{"name": "a", "digest": "0"}', "class_names: expected a list or null; found nothing"),
    ("data.json", '{"name": "a", "dig', "expected JSON; Unterminated string starting at: line 1 column 15 (char 14)"),
    ("data.json", '{"name": ' + "9" * 5000 + "}", "expected whole numbers of at most 1000 digits; found one of 5,000"),
    ("data.json", f"[{'[],' * (1 << 22)}[]]", "expected JSON of at most 4,194,304 values; found 8,388,610"),
    ("imported.json", '{"counters": {"BN1": 1e999}}', "counters.BN1: expected a whole number; found Infinity"),
    ("imported.json", '{"counters": {"BN1": -5}}', "counters.BN1: expected a whole number in [0, 900719925474099"),
    ("imported.json", '{"counters": {"BN1": 9007199254740993}}', "counters.BN1: expected a whole number of at most"),
    ("imported.json", '{"counters": []}', "counters: expected an object; found a list of 0"),
    ("metrics.jsonl", '{"epoch": 1}\n{"epoch": [', "line 2: expected JSON; Expecting value"),
    ("metrics.jsonl", '{"epoch": 1}\n[' + "[" * 5000, "line 2: expected JSON without deep nesting"),
    ("metrics.jsonl", '{"epoch": "1"}', "line 1: epoch: expected a whole number; found '1'"),
]


@pytest.mark.parametrize(("name", "content", "said"), MISWRITTEN, ids=lambda value: value[:30])
def test_what_a_run_tells_is_of_the_types_that_are_declared(name, content, said, tmp_path):
    readers = {"data.json": read_data, "imported.json": origin, "metrics.jsonl": _epochs}
    (tmp_path / name).write_bytes(content.encode(errors="surrogatepass"))
    message = refused(readers[name], tmp_path)
    assert message.startswith(f"{tmp_path / name}: {said}")
    assert len(message) < 500


def test_a_run_without_validation_images_does_not_go_on_with_some(data, copied):
    """As where a folder of images has got one of them since; the training images are the same."""
    with_some = replace(data, validation=data.test)
    message = refused(train, with_train(epochs=4), with_some, copied, resume=True)
    assert message == (
        f"{copied}: the run was trained without validation images, found 40; a run continues on the same data only"
    )


def test_digests_tell_data_apart(data):
    """Other images in any split; where the model gets labels, also other labels and other names of them."""
    told_labels = replace(CONFIG, model=replace(CONFIG.model, classes=10))
    names = tuple("1023456789")
    others = [
        replace(data, train=replace(data.train, images=255 - data.train.images)),
        replace(data, train=replace(data.train, labels=9 - data.train.labels)),
        replace(data, class_names=names),
        replace(data, test=Split(255 - data.test.images, data.test.labels)),
        replace(data, test=replace(data.test, labels=9 - data.test.labels)),
    ]
    for digest, config, expected in (
        (digest_of, CONFIG, [True, False, False, False, False]),
        (digest_of, told_labels, [True, True, True, False, False]),
        (digest_of_all, CONFIG, [True, False, False, True, False]),
        (digest_of_all, told_labels, [True, True, True, True, True]),
    ):
        assert [digest(config, other) != digest(config, data) for other in others] == expected


def test_pictures_show_images_from_all_over_the_test_images(whole, data, tmp_path):
    folder, trained = whole
    shown = data.test.spread(CONFIG.output.figure_images)
    assert not np.array_equal(shown.images, data.test.images[: CONFIG.output.figure_images])
    below = np.asarray(use(trained).reconstruct(shown.images))
    path = pairs(tmp_path / "pairs.png", shown.images / 255, below, names=data.names_of(shown.labels))
    assert path.read_bytes() == (folder / "figures" / "reconstructions_epoch_0003.png").read_bytes()


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((4, 4, 1), "expected images of 8x8x1 .* found 4x4x1 in mine; set data.image_size 4 and data.channels 1"),
        ((8, 8, 3), "found 8x8x3 in mine; set data.image_size 8 and data.channels 3"),
        ((8, 6, 1), "found 8x6x1 in mine$"),
    ],
)
def test_a_run_of_images_of_another_shape_is_refused(tmp_path, shape, found):
    """It could not be read again; `fit` writes nothing, and takes them."""
    data = Dataset("mine", *[Split(np.zeros((20, *shape), np.uint8))] * 2)
    with pytest.raises(UserError, match=found):
        train(CONFIG, data, tmp_path / "run")
    with pytest.raises(UserError, match=found):
        run(Sweep(CONFIG, 2, {}), data, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_loads_what_was_trained(whole):
    folder, trained = whole
    loaded = reading.load(folder)
    same(loaded.state, trained.state)
    assert loaded.history == trained.history
    assert loaded.config == CONFIG
    assert loaded.image_shape == (8, 8, 1)


def test_use(whole, data):
    model = use(whole[1])
    heads = model.encode(data.test.images)
    assert {name: head.shape for name, head in heads.items()} == {"mu": (40, 3), "log_var": (40, 3)}
    pictures = np.asarray(model.decode(heads["mu"]))
    np.testing.assert_array_equal(pictures, model.reconstruct(data.test.images))
    assert pictures.shape == (40, 8, 8, 1)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert model.sample is not None
    assert model.sample(jax.random.key(0), 5).shape == (5, 8, 8, 1)


def test_validation_split_decides_what_is_best(data, tmp_path):
    split = replace(data, validation=Split(data.test.images[:10], None))
    train(with_train(epochs=2), split, tmp_path / "run")
    found, lines = summary(tmp_path / "run"), metrics(tmp_path / "run")
    assert found["best_by"] == "validation_loss"
    assert found["best_loss"] == min(line["validation_loss"] for line in lines)
    assert found["validation_loss"] == lines[-1]["validation_loss"] != lines[-1]["test_loss"]


def test_how_much_is_kept(data, tmp_path):
    """Every second epoch's figures and the last one's, two checkpoints; --resume may start a run."""
    folder = tmp_path / "run"
    train(replace(CONFIG, output=replace(CONFIG.output, figure_every=2, keep_checkpoints=2)), data, folder, resume=True)
    found = sorted(path.name for path in (folder / "figures").glob("recon*"))
    assert found == ["reconstructions_epoch_0002.png", "reconstructions_epoch_0003.png"]
    assert {str(2 * STEPS), str(3 * STEPS)} <= {path.name for path in (folder / "checkpoints").iterdir()}
    # Without the newest checkpoint the one before is used.
    shutil.rmtree(folder / "checkpoints" / str(3 * STEPS))
    assert len(reading.load(folder).history) == 2


# --- Going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epoch", "step"), [(1, 2), (2, 0), (3, 4)], ids=str)
def test_killed_and_resumed_equals_undisturbed(whole, data, tmp_path, epoch, step):
    folder = tmp_path / "run"
    killed(folder, data, CONFIG, epoch=epoch, step=step)
    assert not (folder / "summary.json").exists()
    if epoch > 1:  # the checkpoint has them too; without one, damaged metrics leave open whether there was an epoch
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"epoch": 9, "half')
    seen = []
    train(CONFIG, data, folder, resume=True, on_progress=seen.append)
    # The kill comes before its step's checkpoint: at step 4 the newest one is of step 2, at step 2 there is none.
    assert (seen[0].epoch, seen[0].step) == (epoch, step if step else 2)
    same(reading.load(folder).state, whole[1].state)
    assert metrics(folder) == metrics(whole[0])
    both = [
        {name: value for name, value in summary(path).items() if name not in TIMING | {"seconds"}}
        for path in (folder, whole[0])
    ]
    assert both[0] == both[1]


def test_more_epochs(whole, data, tmp_path):
    train(with_train(epochs=2), data, tmp_path / "run")
    trained = train(CONFIG, data, tmp_path / "run", resume=True)
    same(trained.state, whole[1].state)
    assert metrics(tmp_path / "run") == metrics(whole[0])
    assert read_config(tmp_path / "run").train.epochs == 3


def test_resuming_a_finished_run_changes_nothing(whole, data, copied):
    steps = sorted(path.name for path in (copied / "checkpoints").iterdir())
    trained = train(CONFIG, data, copied, resume=True)
    same(trained.state, whole[1].state)
    assert metrics(copied) == metrics(whole[0])
    assert sorted(path.name for path in (copied / "checkpoints").iterdir()) == steps
    before, after = summary(whole[0]), summary(copied)
    assert {**before, "seconds": 0} == {**after, "seconds": 0}


def test_going_on_elsewhere_is_said(data, copied, monkeypatch):
    """On as many cores nothing is, see `test_a_damaged_checkpoint_is_never_trained_on`."""
    here, reported = cores(), []
    monkeypatch.setattr("vae_jax.runs.identity.cores", lambda: 99)
    train(with_train(epochs=4), data, copied, resume=True, report=reported.append)
    assert reported[1].startswith(
        f"warning: {copied} was trained with cores {here} (now 99): it goes on, but may not end"
    )
    assert summary(copied)["cores"] == 99


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (replace(CONFIG, seed=1), "seed"),
        (replace(CONFIG, model=replace(CONFIG.model, latent=4)), "model.latent"),
        (with_train(learning_rate=1e-2), "train.learning_rate"),
        (with_train(batch_size=30), "train.batch_size"),
        (replace(CONFIG, data=replace(CONFIG.data, validation=0.1)), "data.validation"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_resuming_as_something_else_is_refused(data, copied, changed, named):
    before = snapshot(copied)
    assert named in refused(train, changed, data, copied, resume=True)
    assert snapshot(copied) == before


def edit(folder, old, new):
    path = folder / "config.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_configuration_edited_by_hand_is_not_taken_without_a_word(data, copied):
    for old, new in (
        ("learning_rate: 0.001", "learning_rate: 0.1"),
        ("beta: 1.0", "beta: 4"),
        ("seed: 0", "seed: 3"),
        ("name: bernoulli", "name: continuous_bernoulli"),
        ("epochs: 3", "epochs: 4"),  # how far a run goes and what it keeps may change
        ("keep_checkpoints: 1", "keep_checkpoints: 2"),
    ):
        edit(copied, old, new)
    changed = (
        "seed (the run has 0, found 3 in its config.yaml), "
        "likelihood.name (the run has bernoulli, found continuous_bernoulli in its config.yaml), "
        "objective.beta (the run has 1.0, found 4.0 in its config.yaml), "
        "train.learning_rate (the run has 0.001, found 0.1 in its config.yaml)"
    )
    before = snapshot(copied)
    assert refused(train, read_config(copied), data, copied, resume=True) == (
        f"{copied}: resume=True continues a run as it began; changed: {changed}"
    )
    assert snapshot(copied) == before
    reported = []
    reading.load(copied, report=reported.append)
    assert reported == [f"warning: {copied}/config.yaml is not what the run was trained with; changed: {changed}"]
    # With what it was trained with it goes on, and its configuration tells so again.
    reported = []
    train(CONFIG, data, copied, resume=True, report=reported.append)
    assert reported[0] == f"warning: {copied}/config.yaml was changed, and is rewritten as the run began: {changed}"
    assert read_config(copied) == CONFIG


def test_what_may_change_may_be_edited(copied):
    edit(copied, "epochs: 3", "epochs: 4")
    reading.load(copied, report=pytest.fail)


def test_resuming_on_other_data_is_refused(data, copied):
    before = snapshot(copied)
    fewer = replace(data, train=Split(data.train.images[:100], None))
    # A change of epochs is allowed, but not written where the rest is refused.
    assert "100" in refused(train, with_train(epochs=9), fewer, copied, resume=True)
    assert snapshot(copied) == before


def test_stopping_saves_first(whole, data, tmp_path):
    """Inside an epoch and after one; the run then ends as if it had not been stopped."""
    folder, asked = tmp_path / "run", iter([False, False, False, False, True, False, False, True])
    for expected, step in (("in epoch 2 and saved after step 8", 8), ("saved after epoch 2, step 12", 12)):
        with pytest.raises(Stopped, match=expected):
            train(CONFIG, data, folder, resume=True, should_stop=lambda: next(asked))
        assert int(reading.load(folder).state.step) == step
    train(CONFIG, data, folder, resume=True)
    same(reading.load(folder).state, whole[1].state)
    assert metrics(folder) == metrics(whole[0])


def test_a_diverged_run_saves_nothing_of_it_and_goes_on_if_such_steps_are_skipped(data, tmp_path, monkeypatch):
    """The loss of step 9, in the second epoch, is NaN."""
    bad = step_keys(step_key(make_keys(0).steps, 8)).objective

    def broken(key, model, images, options):
        found = OBJECTIVES["vae"].terms(key, model, images, ObjectiveConfig().options)
        is_bad = (jax.random.key_data(key) == jax.random.key_data(bad)).all()
        return found | {"loss": jnp.where(is_bad, jnp.nan, found["loss"])}

    monkeypatch.setitem(OBJECTIVES, "broken", Objective(broken))
    config = replace(CONFIG, objective=replace(CONFIG.objective, name="broken"))
    folder = tmp_path / "run"
    message = refused(train, config, data, folder)
    assert "diverged in epoch 2: the loss of step 3 of 6 is nan; last finite: loss " in message
    assert "start again (overwrite=True or another folder) or go on from step 6 with resume=True" in message
    assert message.endswith(", train.skip_nonfinite true")
    assert (folder / "diverged.txt").read_text().strip() in message
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["6"]
    assert reading.load(folder, "best").history == reading.load(folder).history
    skipping = replace(config, train=replace(config.train, skip_nonfinite=True))
    trained = train(skipping, data, folder, resume=True)
    assert [epoch.get("skipped_steps") for epoch in trained.history] == [None, 1, 0]
    assert not (folder / "diverged.txt").exists()


def test_a_run_in_its_third_epoch_is_not_cut_to_two(data, tmp_path):
    asked = iter([False] * 7 + [True])
    with pytest.raises(Stopped, match="in epoch 3"):
        train(CONFIG, data, tmp_path / "run", should_stop=lambda: next(asked))
    assert "train.epochs: expected at least the 3 epochs" in refused(
        train, with_train(epochs=2), data, tmp_path / "run", resume=True
    )


# --- What is in the way ----------------------------------------------------------------------------------------------


def test_a_run_is_not_trained_over(data, copied):
    before = snapshot(copied)
    assert "resume=True" in refused(train, CONFIG, data, copied)
    assert "overwrite=True" in refused(train, CONFIG, data, copied, resume=True, overwrite=True)
    assert snapshot(copied) == before


def test_overwrite_deletes_the_run_and_nothing_else(data, copied, tmp_path):
    (copied / "notes.txt").write_text("mine")
    (copied / "latents_test.npz").write_text("of the old run")
    (tmp_path / "link").symlink_to(copied)
    train(with_train(epochs=1), data, tmp_path / "link", overwrite=True)
    assert len(metrics(copied)) == 1
    assert (copied / "notes.txt").read_text() == "mine"
    assert not (copied / "latents_test.npz").exists()
    assert not (copied / "figures" / "reconstructions_epoch_0002.png").exists()
    assert max(int(path.name) for path in (copied / "checkpoints").iterdir() if path.is_dir()) == STEPS


@pytest.mark.parametrize(
    "changed",
    [
        lambda: with_train(schedule="cosin"),
        lambda: with_train(reduction="max"),
        lambda: with_options(CONFIG, **{"model.activation": "rleu"}),
        lambda: with_options(CONFIG, **{"model.channels": [4, 8, 16, 32, 64]}),
        lambda: with_options(CONFIG, **{"objective.name": "gan"}),
        lambda: with_train(batch_size=17),
    ],
    ids=["schedule", "reduction", "activation", "channels", "objective", "batch_size"],
)
def test_nothing_is_deleted_or_written_for_what_cannot_be_trained(data, copied, changed, tmp_path):
    before = snapshot(copied)
    refused(lambda: train(changed(), data, copied, overwrite=True))
    assert snapshot(copied) == before
    refused(lambda: train(changed(), data, tmp_path / "new" / "run"))
    assert not (tmp_path / "new").exists()


def test_a_step_that_does_not_fit_into_memory_is_refused_before_anything_is_lost(data, copied, tmp_path, monkeypatch):
    before = snapshot(copied)
    monkeypatch.setattr(memory, "SMALL", 1000)
    monkeypatch.setattr(memory, "available", lambda: 20_000)
    assert "model: training its" in refused(train, CONFIG, data, copied, overwrite=True)
    monkeypatch.setattr(memory, "available", lambda: 60_000)
    for folder in (copied, tmp_path / "new"):
        assert "train.batch_size 20: the arrays of a step" in refused(train, CONFIG, data, folder, overwrite=True)
    assert snapshot(copied) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", ["hydra: {job: 1}", "not ours", ""], ids=["section", "text", "empty"])
@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_another_programs_folder_is_left_alone(data, tmp_path, content, option):
    (tmp_path / "config.yaml").write_text(content)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "mine.png").write_text("mine")
    before = snapshot(tmp_path)
    assert "config.yaml" in refused(train, CONFIG, data, tmp_path, **{option: True})
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_a_folder_with_other_files_is_left_alone(data, tmp_path, options):
    (tmp_path / "thesis.tex").write_text("mine")
    before = snapshot(tmp_path)
    assert "left alone" in refused(train, CONFIG, data, tmp_path, **options)
    assert snapshot(tmp_path) == before


def test_a_file_in_the_way(data, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for folder in (file, file / "run", file / "deep" / "run"):
        assert str(folder) in refused(train, CONFIG, data, folder)
    assert file.read_text() == "mine"


@pytest.fixture
def read_only(whole):
    """The undisturbed run where nothing can be written, for root neither."""
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(whole[0], folder / "run")
    root = os.geteuid() == 0
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    reading.load(folder / "run")  # what is imported late may lie where only root can read
    if root:
        os.setresuid(65534, 65534, 0)
    yield folder / "run"
    if root:
        os.setresuid(0, 0, 0)
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_run_is_read_and_not_trained(whole, data, read_only):
    same(reading.load(read_only).state, whole[1].state)
    before = snapshot(read_only)
    for folder, option in ((read_only, "resume"), (read_only, "overwrite"), (read_only.parent / "new", "resume")):
        message = refused(train, CONFIG, data, folder, **{option: True})
        assert message.startswith(
            f"{folder}: expected a folder that can be written; permission denied in {folder.parent}"
        )
    assert snapshot(read_only) == before


# --- Loading ---------------------------------------------------------------------------------------------------------


def test_loading_what_is_no_run(whole, tmp_path):
    assert "no such folder" in refused(reading.load, tmp_path / "none")
    assert "a file" in refused(reading.load, whole[0] / "config.yaml")
    assert "config.yaml" in refused(reading.load, tmp_path)
    shutil.copy(whole[0] / "config.yaml", tmp_path)
    assert "checkpoints" in refused(reading.load, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert "checkpoint" in refused(reading.load, tmp_path)


def test_loading_another_models_checkpoint(copied):
    options = yaml.safe_load((copied / "config.yaml").read_text())
    options["model"]["latent"] = 5
    (copied / "config.yaml").write_text(yaml.safe_dump(options))
    with pytest.warns(UserWarning, match=r"model\.latent \(the run has 3, found 5 in its config\.yaml"):
        message = refused(reading.load, copied)
    assert "config.yaml" in message
    assert "float32" in message


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:10]), lambda path: path.unlink()]
)
def test_a_damaged_checkpoint_is_never_trained_on(whole, data, tmp_path, damage):
    """The one before it is, so that the run still ends where it should."""
    folder = tmp_path / "run"
    train(replace(CONFIG, output=replace(CONFIG.output, keep_checkpoints=2)), data, folder)
    step = folder / "checkpoints" / str(3 * STEPS)
    damage(max(step.rglob("*"), key=lambda path: path.stat().st_size * path.is_file()))
    with pytest.warns(UserWarning, match="passed over"):
        assert len(reading.load(folder).history) == 2
    reported = []
    train(CONFIG, data, folder, resume=True, report=reported.append)
    assert [str(step) in line for line in reported] == [True, True, False]
    assert "damaged" in reported[0]
    assert str(folder / "checkpoints" / "damaged" / step.name) in reported[1]
    assert reported[2] == f"continuing {folder} after epoch 2, step {2 * STEPS}"
    same(reading.load(folder).state, whole[1].state)
    assert metrics(folder) == metrics(whole[0])


def test_the_summarys_best_is_what_the_best_checkpoint_gives(data, tmp_path):
    """Tested on negatives, which a model of digits gives less and less."""
    folder = tmp_path / "run"
    data = replace(data, test=Split(255 - data.test.images))
    train(CONFIG, data, folder)
    found, lines = summary(folder), metrics(folder)
    assert found["best_epoch"] < found["epochs"]
    assert found["best_loss"] == lines[found["best_epoch"] - 1]["test_loss"]
    best = reading.load(folder, "best")
    assert int(best.state.step) == found["best_epoch"] * STEPS
    assert len(best.history) == found["best_epoch"]
    network, objective = build(best.config, best.image_shape)
    evaluate = make_evaluator(best.config, network, objective, data.test.images)
    assert means(evaluate(best.state.variables, make_keys(0).evaluate))["loss"] == found["best_loss"]


def test_the_summarys_best_is_finite_where_one_is(whole):
    folder, trained = whole
    recorder = Recorder(CONFIG, Dataset("some", *[Split(np.zeros((4, 8, 8, 1), np.uint8))] * 2), folder, lambda: False)
    history = [{**epoch, "test_loss": loss} for epoch, loss in zip(trained.history, [math.nan, 2.0, 3.0], strict=True)]
    found = recorder._summary(trained._replace(history=history), 1.0)
    assert (found["best_epoch"], found["best_loss"]) == (2, 2.0)


def test_a_schedule_that_ends_is_not_prolonged_and_no_run_is_shortened(data, tmp_path):
    ending = with_train(epochs=1, schedule="cosine")
    train(ending, data, tmp_path / "ending")
    with pytest.raises(UserError, match=r"train\.epochs \(the run has 1, found 2\)"):
        train(with_train(epochs=2, schedule="cosine"), data, tmp_path / "ending", resume=True)
    train(with_train(epochs=2), data, tmp_path / "whole")
    with pytest.raises(UserError, match=r"train\.epochs: expected at least the 2 epochs the run has; found 1"):
        train(with_train(epochs=1), data, tmp_path / "whole", resume=True)


def test_resuming_on_as_many_other_images_is_refused(data, tmp_path):
    train(with_train(epochs=1), data, tmp_path / "run")
    other = replace(data, train=replace(data.train, images=255 - data.train.images))
    with pytest.raises(UserError, match="trained on other images"):
        train(with_train(epochs=2), other, tmp_path / "run", resume=True)
