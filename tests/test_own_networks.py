"""Networks of a user's own: they start as their initialisers say, train as they are, and are asked what they are."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors

from vae_jax import layers, networks, objectives, posteriors
from vae_jax.config import ModelConfig, load_config
from vae_jax.config.parts import registry_of
from vae_jax.data import Dataset, Split
from vae_jax.device.platforms import current
from vae_jax.errors import UserError
from vae_jax.evaluation.evaluator import make_evaluator
from vae_jax.keys import make_keys
from vae_jax.model.build import build
from vae_jax.posteriors import KL
from vae_jax.runs.checkpoint import Saved, restore, save
from vae_jax.runs.fit import fit
from vae_jax.shapes import Shapes
from vae_jax.training.checks import check_batches
from vae_jax.training.start import start

OWN = Path(__file__).parent / "own"
NETWORKS = {
    "vit": f"{OWN}/vit.py:ViT",
    "groupnorm": f"{OWN}/groupnorm.py:GroupNormNet",
    "fast": f"{OWN}/groupnorm.py:FastNet",
    "initialised": f"{OWN}/initialised.py:Initialised",
}
SHAPE = (8, 8, 1)
IMAGES = np.random.RandomState(0).randint(0, 256, (65, *SHAPE), np.uint8)


def config_of(name, **options):
    own = NETWORKS.get(name, name)
    return load_config(**{"model.network": own, "model.latent": 3, "data.image_size": 8, "train.epochs": 2, **options})


def begun(name, seed=0):
    return build(config_of(name, seed=seed), SHAPE)[0].init(make_keys(seed).init)


def leaves(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def trained_from_noise(name, **options):
    """Two epochs on 32 images."""
    data = Dataset("noise", Split(IMAGES[:32]), Split(IMAGES[:5]))
    return fit(config_of(name, **{"train.batch_size": 16, "train.learning_rate": 0.01, **options}), data)


@pytest.mark.parametrize("name", ["vit", "initialised"])
def test_an_own_network_trains_and_is_saved(name, tmp_path):
    trained = trained_from_noise(name)
    losses = [epoch["train_loss"] for epoch in trained.history]
    assert losses[1] < losses[0]
    before = leaves(begun(name).params)
    for path, leaf in leaves(trained.state.variables.params).items():
        assert (leaf != before[path]).any(), path
    if name == "initialised":  # a collection of its own is kept and updated, step by step
        assert trained.state.variables.state == {"steps": {"count": 4}}
    save(tmp_path, Saved(trained.state, trained.history, 32))
    saved = restore(tmp_path, "latest", lambda images: trained.state, print)
    assert saved is not None
    jax.tree.map(np.testing.assert_array_equal, saved.state, trained.state)


def test_an_own_network_starts_as_its_initialisers_say():
    params = begun("initialised").params
    np.testing.assert_array_equal(params["scale"], np.full(3, 0.5))
    for head in ("mu", "log_var"):
        np.testing.assert_array_equal(params[f"to_heads_{head}"]["kernel"], np.zeros((64, 3)))
        np.testing.assert_array_equal(params[f"to_heads_{head}"]["bias"], np.full(3, 0.25))
    np.testing.assert_array_equal(params["to_pixels"]["kernel"], jax.random.uniform(jax.random.key(7), (3, 64)))

    vit = leaves(begun("vit").params)
    (positions,) = (leaf for path, leaf in vit.items() if "positions" in path)
    assert float(positions.std()) == pytest.approx(0.02, rel=0.3)
    # Attention: variance 1 over the 16 inputs of each output, truncated at two standard deviations of its own.
    kernels = [leaf for path, leaf in vit.items() if "query" in path and "kernel" in path]
    assert all(float(kernel.std()) == pytest.approx(16**-0.5, rel=0.2) for kernel in kernels)
    assert all((leaf == 0).all() for path, leaf in vit.items() if path.endswith("['bias']"))
    assert all((leaf == 1).all() for path, leaf in vit.items() if path.endswith("['scale']"))


@pytest.mark.parametrize(("name", "fixed"), [("vit", ("bias", "scale")), ("initialised", ("scale", "bias", "kernel"))])
def test_what_is_random_differs_by_seed_and_nothing_else(name, fixed):
    first, again, second = (leaves(begun(name, seed).params) for seed in (0, 0, 1))
    for path, leaf in first.items():
        np.testing.assert_array_equal(leaf, again[path])
        assert (leaf == second[path]).all() == any(f"'{word}'" in path for word in fixed), path


class Plain(nn.Module):
    """Linear, with BatchNorm if asked for, in which `give` may spoil what is given."""

    options: object
    shapes: object

    norm = False

    def setup(self):
        self.to_heads = {name: nn.Dense(size) for name, size in self.shapes.heads.items()}
        self.to_pixels = nn.Dense(64)
        if self.norm:
            self.batch_norm = nn.BatchNorm(momentum=0.9)

    def encode(self, images, train):
        x = images.reshape(len(images), -1)
        if self.norm:
            x = self.batch_norm(x, use_running_average=not train)
        return {name: head(x) for name, head in self.to_heads.items()}

    def decode(self, z, train):
        return self.to_pixels(z).reshape(-1, 8, 8, 1)


class Normed(Plain):
    norm = True


@pytest.fixture
def own(monkeypatch):
    """(a network's class) -> the name under which a configuration has it."""

    def register(network):
        monkeypatch.setitem(networks.NETWORKS, "own", network)
        return "own"

    return register


@pytest.mark.parametrize(("network", "couples"), [(Plain, False), (Normed, True)])
def test_whether_images_of_a_batch_depend_on_one_another_is_asked_of_the_network(own, network, couples):
    config = config_of(own(network), **{"train.batch_size": 64})
    built, _ = build(config, SHAPE)
    assert built.ties() == (couples, couples)
    vamp = {"prior.name": "vamp", "prior.components": 4, "train.batch_size": 5}
    piwae = {"objective.name": "piwae", "train.batch_size": 5}
    if not couples:
        check_batches(config, 65, built)
        for options in (vamp, piwae):
            build(config_of("own", **options), SHAPE)
        return
    check_batches(config, 66, built)
    with pytest.raises(
        UserError,
        match=r"train\.batch_size: expected at least two images for own, .*a last batch of one image \(65 images",
    ):
        check_batches(config, 65, built)
    for options, reason in ((vamp, "pseudo-inputs"), (piwae, "each sample's own gradient")):
        with pytest.raises(
            UserError, match=rf"model\.network: expected one without BatchNorm.*{reason}.*; found own, "
        ):
            build(config_of("own", **options), SHAPE)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_our_networks_couple_images_where_they_have_batch_norm(batch_norm):
    model = ModelConfig("convolutional", 2, channels=(2,), hidden=4, batch_norm=batch_norm)
    assert networks.build(model, Shapes(SHAPE, 2, 0, {"mu": 2, "log_var": 2})).ties() == (
        batch_norm,
        batch_norm,
    )


def test_a_running_statistic_alone_is_no_coupling(own):
    class Counting(Plain):
        """Keeps the mean of what it has seen, as spectral normalisation keeps vectors, and does not use it."""

        def setup(self):
            super().setup()
            self.mean = self.variable("batch_stats", "mean", jnp.zeros, ())

        def encode(self, images, train):
            if train and not self.is_initializing():
                self.mean.value = images.mean()
            return super().encode(images, train)

    assert build(config_of(own(Counting)), SHAPE)[0].ties() == (False, True)
    with pytest.raises(
        UserError, match=r"model\.network: .* whose pseudo-inputs would enter them; found own, which keeps"
    ):
        build(config_of("own", **{"prior.name": "vamp", "prior.components": 4}), SHAPE)


def test_not_a_number_is_no_coupling_and_a_mask_of_infinities_is_no_divergence(own):
    class Masked(Plain):
        """A square root of a parameter, and a mask kept in a collection."""

        def setup(self):
            super().setup()
            self.scale = self.param("scale", nn.initializers.zeros, (3,))
            self.mask = self.variable("constants", "mask", lambda: jnp.array([0.0, 0.0, -jnp.inf]))

        def decode(self, z, train):
            weights = nn.softmax(jnp.broadcast_to(self.mask.value, z.shape) + z)
            return super().decode(weights + jnp.sqrt(jnp.broadcast_to(jnp.abs(self.scale) + 1, z.shape)), train)

    assert build(config_of(own(Masked)), SHAPE)[0].ties() == (False, False)
    assert len(trained_from_noise("own", **{"train.skip_nonfinite": True}).history) == 2

    class Undefined(Plain):
        def decode(self, z, train):
            return super().decode(z, train) * jnp.nan

    assert build(config_of(own(Undefined)), SHAPE)[0].ties() == (False, False)


def test_what_calls_only_add_to_a_collection_is_left_out(own):
    class Sowing(Plain):
        def encode(self, images, train):
            self.sow("losses", "mean", images.mean())
            return super().encode(images, train)

    variables = build(config_of(own(Sowing)), SHAPE)[0].init(jax.random.key(0))
    assert variables.state == {}


class Counting(Plain):
    """Counts in a collection; `count` says how."""

    def setup(self):
        super().setup()
        self.steps = self.variable("steps", "count", jnp.zeros, (), jnp.int32)

    def encode(self, images, train):
        self.count(train)
        return super().encode(images, train)


class Widening(Counting):
    def count(self, train):
        if train:
            self.steps.value += 1.0


class Always(Counting):
    def count(self, train):
        if not self.is_initializing():
            self.steps.value += 1


def test_a_collection_that_a_step_or_an_evaluation_cannot_leave_so_is_refused_before_training(own):
    with pytest.raises(
        UserError, match=r"collection steps\['count'\]: expected a step .* int32\[\]; found float32\[\]"
    ):
        build(config_of(own(Widening)), SHAPE)[0].init(jax.random.key(0))
    with pytest.raises(errors.ModifyScopeVariableError):
        build(config_of(own(Always)), SHAPE)[0].init(jax.random.key(0))


def test_a_parameter_that_is_no_float_is_refused(own):
    class Indexed(Plain):
        def setup(self):
            super().setup()
            self.order = self.param("order", lambda key: jnp.arange(3))

    with pytest.raises(UserError, match=r"parameter \['order'\]: expected floats, which are trained; found int32"):
        build(config_of(own(Indexed)), SHAPE)[0].init(jax.random.key(0))


def heads_without_log_var(self, images, train):
    return {"mu": images.reshape(len(images), -1)[:, :3]}


def heads_with_more(self, images, train):
    mu = images.reshape(len(images), -1)[:, :3]
    return {"mu": mu, "log_var": mu, "skew": mu}


def heads_of_another_shape(self, images, train):
    mu = images.reshape(len(images), -1)[:, :3]
    return {"mu": mu, "log_var": mu[:, :1]}


def no_dict(self, images, train):
    return images.reshape(len(images), -1)[:, :3]


def one_image(self, z, train):
    return jnp.zeros((8, 8, 1))


def flat_pictures(self, z, train):
    return jnp.zeros((len(z), 64))


def whole_numbers(self, z, train):
    return jnp.zeros((len(z), 8, 8, 1), jnp.int32)


@pytest.mark.parametrize(
    ("part", "function", "message"),
    [
        ("encode", heads_without_log_var, r"encode: expected mu, log_var; found mu"),
        ("encode", heads_with_more, r"encode: expected mu, log_var; found mu, log_var, skew"),
        ("encode", heads_of_another_shape, r"encode, log_var: expected floats of shape \(1, 3\); found .*\(1, 1\)"),
        ("encode", no_dict, r"encode: expected a dict with mu, log_var; found floats of shape \(1, 3\)"),
        ("decode", one_image, r"decode: expected floats of shape \(1, 8, 8, 1\); found floats of shape \(8, 8, 1\)"),
        ("decode", flat_pictures, r"decode: expected floats of shape \(1, 8, 8, 1\); found .*\(1, 64\)"),
        ("decode", whole_numbers, r"decode: expected floats .*; found int32 of shape \(1, 8, 8, 1\)"),
    ],
)
def test_what_a_network_gives_is_looked_at(own, part, function, message):
    name = own(type("Spoilt", (Plain,), {part: function, "__annotations__": {}}))
    with pytest.raises(UserError, match=rf"^model\.network own, {message}"):
        start(config_of(name), SHAPE, 10)


def test_xlas_own_convolution_takes_a_call_a_step_on_a_cpu_and_ends_alike():
    """The same weights, batches and noise with both convolutions: equal up to rounding."""
    histories = [trained_from_noise(name).history for name in ("groupnorm", "fast")]
    assert histories[0][1]["train_loss"] < histories[0][0]["train_loss"]
    for native, ours in zip(*histories, strict=True):
        for figure in ("train_loss", "test_loss", "test_kl"):
            assert native[figure] == pytest.approx(ours[figure], rel=1e-5)


LAYERS = [
    ((7, 5), (3, 3), (1, 1), "SAME", {}),
    ((8, 5), (4, 2), (2, 2), "SAME", {"use_bias": False}),
    ((7, 7), (3, 3), (2, 2), "VALID", {}),
    ((8, 5), (4, 3), (3, 1), ((0, 2), (1, 0)), {}),
    ((5, 5), (1, 1), (2, 2), 1, {}),
    ((6, 6), (3, 3), (1, 1), "SAME", {"kernel_dilation": (2, 2)}),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("size", "kernel", "strides", "padding", "more"), LAYERS)
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "flipped"])
def test_our_layers_are_flaxs(kind, size, kernel, strides, padding, more):
    """The same parameters by the same names, the same numbers, the same gradients."""
    options = {"strides": strides, "padding": padding, "param_dtype": jnp.float64, **more}
    options |= {"transpose_kernel": True} if kind == "flipped" else {}
    name = "Conv" if kind == "Conv" else "ConvTranspose"
    x = jnp.asarray(np.random.RandomState(0).randn(2, *size, 3))
    results = []
    for module in (getattr(layers, name), getattr(nn, name)):
        layer = module(4, kernel, **options)

        def both(key, x, layer=layer):
            variables = layer.init(key, x)
            return variables, *jax.value_and_grad(lambda v, x: jnp.sin(layer.apply(v, x)).sum(), (0, 1))(variables, x)

        results.append(jax.jit(both)(jax.random.key(1), x))
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    jax.tree.map(lambda ours, flaxs: np.testing.assert_allclose(ours, flaxs, rtol=1e-9, atol=1e-12), *results)


def test_a_convolution_of_ours_has_no_xla_convolution_on_a_cpu_and_takes_one_image():
    layer = layers.Conv(4, (3, 3))
    image = jnp.ones((6, 6, 1))
    variables = layer.init(jax.random.key(0), image)
    assert layer.apply(variables, image).shape == (6, 6, 4)
    lowered = jax.jit(layer.apply).lower(variables, image).as_text()
    assert ("stablehlo.convolution" in lowered) == (current().convolution == "native")
    for padding in ("CIRCULAR", "SAME_LOWER", "same"):
        with pytest.raises(UserError, match="expected padding SAME, VALID or numbers of zeros"):
            layers.ConvTranspose(4, (3, 3), padding=padding).init(jax.random.key(0), image)
    for more in ({"precision": (jax.lax.Precision.HIGHEST,) * 2}, {"padding": "VALID", "kernel_size": (9, 9)}):
        pair = [module(**{"features": 4, "kernel_size": (3, 3), **more}) for module in (layers.Conv, nn.Conv)]
        shapes = [
            jax.eval_shape(lambda x, each=each: each.init_with_output(jax.random.key(0), x)[0], image) for each in pair
        ]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "options",
    [
        {"objective.name": "iwae"},
        {"objective.kl": "sampled"},
        {"objective.gradient": "stl"},
        {"prior.name": "mixture", "prior.components": 2},
    ],
)
def test_latent_mean_is_refused_where_the_loss_looks_at_densities_of_samples(options):
    config = config_of("mlp", **{"model.layers": [4], **options})
    with pytest.raises(UserError, match=r"latent: expected sample, since .* densities at samples of z; found mean"):
        make_evaluator(config, *build(config, SHAPE), IMAGES, "mean")


def test_latent_mean_of_an_own_objective_is_judged_by_what_it_looks_at(monkeypatch):
    from vae_jax.objectives import Objective

    def closed(key, model, images, options):
        heads = model.encode(images)
        z, _ = model.sample(key, heads, 2)
        reconstruction = -model.log_likelihood(images, model.decode(z)).mean(0)
        return {"loss": reconstruction + model.kl(heads)}

    def bound(key, model, images, options):
        z, log_q = model.sample(key, model.encode(images))
        log_w = model.log_likelihood(images, model.decode(z)) + model.log_prior(z) - log_q
        return {"loss": -log_w}

    def hidden(key, model, images, options):
        """A sampled KL with free bits, in which a density that is not a number would not show."""
        z, log_q = model.sample(key, model.encode(images))
        kl = log_q - model.log_prior(z)
        reconstruction = -model.log_likelihood(images, model.decode(z))
        return {"loss": reconstruction + jnp.where(kl > 1, kl, 1.0)}

    for function, allowed in ((closed, True), (bound, False), (hidden, False)):
        monkeypatch.setitem(objectives.OBJECTIVES, "own", Objective(function))
        config = config_of("mlp", **{"model.layers": [4], "objective.name": "own"})
        built = build(config, SHAPE)
        if allowed:
            evaluator = make_evaluator(config, *built, IMAGES, "mean")
            terms = evaluator(start(config, SHAPE, 1).variables, jax.random.key(0))
            assert np.isfinite(terms["loss"]).all()
        else:
            with pytest.raises(UserError, match=r"^latent: expected sample"):
                make_evaluator(config, *built, IMAGES, "mean")


OBJECTIVE_FAULTS = {
    r"loss: expected floats of shape \(5,\); found floats of shape \(\)": lambda t: t | {"loss": t["loss"].sum()},
    r"kl: expected floats of shape \(5,\); found a float": lambda t: t | {"kl": 0.0},
    r"reconstruction: expected .*; found floats of shape \(5, 1\)": lambda t: (
        t | {"reconstruction": t["reconstruction"][:, None]}
    ),
    r"loss: expected floats of shape \(5,\); found int32 of shape \(5,\)": lambda t: (
        t | {"loss": t["loss"].astype(jnp.int32)}
    ),
    r"expected it to give a dict with a \"loss\"; found a tuple": tuple,
    r"expected it to give a dict with a \"loss\"; found a NoneType": lambda t: None,
    r"expected it to give a dict with a \"loss\"; found a dict with kl": lambda t: {"kl": t["kl"]},
    r"expected figures named by letters, digits and _; found 'a b'": lambda t: t | {"a b": t["kl"]},
    r"expected figures not named seconds, .*or ending in _std, .*; found 'seconds'": lambda t: t | {"seconds": t["kl"]},
    r"expected figures not named seconds, .*or ending in _std, .*; found 'z_std'": lambda t: t | {"z_std": t["kl"]},
    r"size: expected floats of shape \(\); found int32 of shape \(\)": lambda t: t | {"size": jnp.int32(5)},
}


@pytest.mark.parametrize("message", OBJECTIVE_FAULTS)
def test_what_an_objective_gives_is_looked_at(monkeypatch, message):
    from vae_jax.objectives import Objective
    from vae_jax.objectives.vae import VAEOptions, vae

    spoil = OBJECTIVE_FAULTS[message]

    def spoilt(key, model, images, options: VAEOptions):
        return spoil(vae(key, model, images, options))

    monkeypatch.setitem(objectives.OBJECTIVES, "own", Objective(spoilt))
    config = config_of("mlp", **{"model.layers": [4], "objective.name": "own", "train.batch_size": 5})
    data = Dataset("noise", Split(IMAGES[:10]), Split(IMAGES[:5]))
    with pytest.raises(UserError, match=rf"^objective\.name own.* {message}|^objective\.name own, {message}"):
        fit(config, data)


PART_FAULTS = [
    (
        "likelihood",
        "bernoulli",
        "log_prob",
        lambda value: value[:, None],
        r"log_prob: expected .*\(5,\); found .*\(5, 1\)",
    ),
    ("likelihood", "bernoulli", "log_prob", jnp.sum, r"log_prob: expected .*\(5,\); found floats of shape \(\)"),
    ("prior", "standard_normal", "log_prob", jnp.sum, r"log_prob: expected floats of shape \(5,\); found .*\(\)"),
    ("posterior", "diagonal_gaussian", "transform", lambda value: value[0], r"transform: expected z and log q\(z\|x\)"),
    (
        "posterior",
        "diagonal_gaussian",
        "transform",
        lambda value: (value[0], value[1].sum()),
        r"log q\(z\|x\): expected",
    ),
    ("posterior", "diagonal_gaussian", "transform", lambda value: (value[0].T, value[1]), r"transform, z: expected"),
]


def test_a_closed_form_of_another_shape_is_refused(monkeypatch):
    make = posteriors.POSTERIORS["diagonal_gaussian"]

    def spoilt(*arguments):
        good = make(*arguments)
        total = good.kl["standard_normal"].total
        return good._replace(kl={"standard_normal": KL(lambda heads, own: total(heads, own).sum())})

    monkeypatch.setitem(posteriors.POSTERIORS, "own", spoilt)
    config = config_of("mlp", **{"model.layers": [4], "posterior.name": "own", "train.batch_size": 5})
    message = r"^posterior\.name own, kl, total: expected floats of shape \(5,\); found floats of shape \(\)"
    with pytest.raises(UserError, match=message):
        fit(config, Dataset("noise", Split(IMAGES[:10]), Split(IMAGES[:5])))


@pytest.mark.parametrize(("part", "name", "function", "spoil", "message"), PART_FAULTS)
def test_what_other_parts_give_is_looked_at(monkeypatch, part, name, function, spoil, message):
    registry = registry_of(part)
    make = registry[name]

    def spoilt(*arguments):
        good = make(*arguments)
        return good._replace(**{function: lambda *a, **k: spoil(getattr(good, function)(*a, **k))})

    monkeypatch.setitem(registry, "own", spoilt)
    sampled = {"objective.kl": "sampled"} if part == "prior" else {}
    config = config_of("mlp", **{"model.layers": [4], f"{part}.name": "own", "train.batch_size": 5, **sampled})
    data = Dataset("noise", Split(IMAGES[:10]), Split(IMAGES[:5]))
    with pytest.raises(UserError, match=rf"^{part}\.name own, .*{message}"):
        fit(config, data)


def test_an_own_posterior_of_one_head_still_needs_a_likelihood_of_the_data(monkeypatch):
    """It has the head of an autoencoder's code, and is none."""
    from vae_jax.posteriors import POSTERIORS, Posterior

    def fixed(options, shapes):
        def transform(params, noise, heads):
            return heads["mu"] + 0.1 * noise, jnp.zeros(noise.shape[:-1])

        return Posterior({"mu": shapes.latent}, transform)

    monkeypatch.setitem(POSTERIORS, "own", fixed)
    options = {"posterior.name": "own", "data.treatment": "dynamic", "likelihood.name": "continuous_bernoulli"}
    with pytest.raises(UserError, match=r"data\.treatment: expected grey or dequantized"):
        build(config_of("mlp", **options), SHAPE)
    monkeypatch.setitem(POSTERIORS, "own", lambda options, shapes: Posterior({"mean": 3}, lambda *_: None))
    with pytest.raises(UserError, match=r"posterior\.name: expected own to have a head mu; found mean"):
        build(config_of("mlp", **{"posterior.name": "own"}), SHAPE)
