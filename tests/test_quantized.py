"""Models with codes trained as every other: finite, resumed exactly, members of a sweep, and what does not fit them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_fixtures import trained_and_resumed

from vae_jax import keys
from vae_jax.config import Config, TrainConfig, adapted
from vae_jax.errors import UserError
from vae_jax.evaluation.evaluator import make_evaluator, means, usage
from vae_jax.model.build import build
from vae_jax.runs.fit import fit
from vae_jax.runs.reading import use
from vae_jax.training import several
from vae_jax.training.start import first_images, start

POSTERIORS = {
    "codebook": {"posterior.codes": 8, "model.latent": 3},
    "gradient": {"posterior.codes": 8, "model.latent": 3, "posterior.update": "gradient", "posterior.stages": 2},
    "cosine": {"posterior.codes": 8, "model.latent": 3, "posterior.distance": "cosine"},
    "fsq": {"posterior.levels": [5, 4, 3], "model.latent": 3},
    "lfq": {"model.latent": 5},
}
NETWORKS = {
    "mlp": {"model.network": "mlp", "model.layers": [8], "posterior.places": [4]},
    "convolutional": {"model.network": "convolutional", "model.channels": [8, 8], "model.paddings": [1, 1]},
    "residual": {"model.network": "residual", "model.channels": [8, 8], "model.blocks": 1},
}


def config_of(posterior="codebook", network="mlp", **changes):
    name = posterior if posterior in ("fsq", "lfq") else "codebook"
    options = NETWORKS[network] | {"posterior.name": name, "prior.name": "uniform"} | POSTERIORS[posterior]
    return adapted(Config(train=TrainConfig(batch_size=32, epochs=2, chunk_steps=2)), **options | changes)


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
    ("posterior", "network"),
    [
        ("codebook", "convolutional"),
        ("gradient", "mlp"),
        ("cosine", "mlp"),
        ("fsq", "residual"),
        ("lfq", "mlp"),
    ],
)
def test_models_with_codes_train_evaluate_and_resume_exactly(posterior, network, small_data):
    config = config_of(posterior, network)
    whole = trained_and_resumed(config, small_data)
    last = whole.history[-1]
    model = use(whole)
    assert np.isfinite(model.reconstruct(small_data.test.images)).all()
    assert np.isfinite(model.sample(jax.random.key(0), 5)).all()
    places = (4,) if network == "mlp" else (2, 2)
    assert model.draw(jax.random.key(0), 3).shape == (3, *places, config.model.latent)
    # The figures of the last epoch again, and by hand how the codes of the whole split are used.
    built, objective = build(config, small_data.image_shape)
    terms = make_evaluator(config, built, objective, small_data.test.images)(
        whole.state.variables, keys.make_keys(0).evaluate
    )
    found = means(terms)
    assert found == {name: last[f"test_{name}"] for name in (*objective.figures.names, "codes_used", "perplexity")}
    encoded = built.apply(
        whole.state.variables, lambda model: model.draw(jax.random.key(0), jnp.asarray(small_data.test.images) / 255)
    )[0]
    codes = np.asarray(encoded.codes).reshape(20, -1)
    stages = codes.shape[1] // 4
    labels = [(place % stages, code) for row in codes.tolist() for place, code in enumerate(row)]
    _, counts = np.unique(np.array(labels), axis=0, return_counts=True)
    shares = counts / counts.sum()
    assert found["codes_used"] == len(counts)
    assert found["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-12)
    assert found["kl"] == pytest.approx(4 * stages * np.log(built.posterior.codes.values), rel=1e-6)
    # At the centre of q(z|x), which is all of it, everything is the same.
    central = make_evaluator(config, built, objective, small_data.test.images, "mean")
    at_centre = means(central(whole.state.variables, keys.make_keys(0).evaluate))
    assert at_centre == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("posterior", ["codebook", "gradient"])
def test_members_of_a_sweep_begin_and_train_as_single_runs(posterior, small_data, float64, monkeypatch):
    monkeypatch.setattr(several, "_over_members", jax.vmap)  # side by side, as on an accelerator
    configs = [config_of(posterior, seed=seed) for seed in (0, 7)]
    program = several.program_that_fits(configs, several.Images(small_data))
    assert program.size == 2
    found = several.fit(program, [several.Run(config) for config in configs])
    begun = []
    for config, (state, history) in zip(configs, found, strict=True):
        first = start(config, small_data.image_shape, 70, first_images(config, small_data.train))
        blind = start(config, small_data.image_shape, 70)
        begun.append(first.variables)
        assert jax.tree.structure(first) == jax.tree.structure(blind)
        assert [leaf.dtype for leaf in jax.tree.leaves(first)] == [leaf.dtype for leaf in jax.tree.leaves(blind)]
        alone = fit(config, small_data)
        for name, value in alone.history[-1].items():
            if name.split("_")[0] in ("train", "test", "validation") and not name.endswith("seconds"):
                assert history[-1][name] == pytest.approx(value, rel=1e-9), name
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), state, alone.state)
    together = jax.vmap(program._start, (0, None))(np.array([0, 7], np.uint32), {})
    for number, first in enumerate(begun):
        jax.tree.map(
            lambda a, b, number=number: np.testing.assert_allclose(a[number], b, rtol=1e-9, atol=1e-12),
            together.variables,
            first,
        )


def test_usage_by_hand():
    """Two codes, one used three times as often; and one of very many, whose number is no size of an array."""
    expected = {"codes_used": 2.0, "perplexity": pytest.approx(4 / 27**0.25, rel=1e-12)}
    assert usage(np.array([[5, 5], [2, 5]])) == expected
    assert usage(np.array([[2**30 - 1, 0], [0, 0]])) == expected


REFUSED = {
    r"found convolutional, whose map is \[2, 2\] for images of \[8, 8, 1\]": {
        **NETWORKS["convolutional"],
        "posterior.places": [3, 3],
    },
    r"with a map of \[4\], as z is \(of a codebook posterior\.places\), .*; found residual, whose map is \[2, 2\]": {
        **NETWORKS["residual"],
        "posterior.places": [4],
    },
    r"posterior\.places: expected the shape of the codes, as \[16\], .*; found null": {"posterior.places": None},
    r"model\.hidden: expected 128 with a posterior of maps, .*; found 32": {
        **NETWORKS["convolutional"],
        "posterior.places": None,
        "model.hidden": 32,
    },
    r"objective\.name: expected vae or another with one sample .* posterior codebook, .*; found iwae": {
        "objective.name": "iwae"
    },
    r"prior\.name: expected one over the posterior's codes, as of posterior codebook; found standard_normal": {
        "prior.name": "standard_normal"
    },
    r"prior\.name: expected a prior over real vectors, as the posterior's z are; found uniform": {
        "posterior.name": "diagonal_gaussian"
    },
    r"objective\.free_bits: expected 0 with posterior codebook, prior uniform,.*; found 0\.5": {
        "objective.free_bits": 0.5
    },
    r"posterior\.distance: expected euclidean with several stages; found cosine": {
        "posterior.stages": 2,
        "posterior.distance": "cosine",
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_codes_is_refused_in_a_line(message):
    with pytest.raises(UserError, match=message) as refused:
        build(config_of(**REFUSED[message]), (8, 8, 1))
    assert len(str(refused.value).splitlines()) == 1
