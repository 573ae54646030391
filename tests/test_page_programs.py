"""Programs of pages: their arithmetic in Chromium beside jax's, operation by operation and decoder by decoder."""

import json
from pathlib import Path

import browser
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import special

from vae_jax.config import Config, adapted
from vae_jax.errors import UserError
from vae_jax.model.build import build
from vae_jax.model.model import make_model
from vae_jax.pages import explore, steps
from vae_jax.pages.page import page
from vae_jax.pages.program import program_of
from vae_jax.variables import Variables

TOLERANCE = 1e-4  # of a picture in [0, 1], as the page checks it itself
RANDOM = np.random.RandomState(0)
OWN = Path(__file__).parent / "own"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    blank = tmp_path_factory.mktemp("page") / "blank.html"
    blank.write_text(page("blank", "", ["program.js"]), encoding="utf-8")
    with browser.chromium() as made:
        made.blank = blank.as_uri()
        yield made


@pytest.fixture
def blank(driver):
    """The driver at a page that has nothing but `program.js`."""
    if driver.current_url != driver.blank:
        driver.get(driver.blank)
    return driver


def program_at(function, *arrays):
    """The program of a function, and its inputs."""
    named = {f"x{number}": array for number, array in enumerate(arrays)}
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in named.items()}
    return program_of(function, shapes), named


def floats(*shape, low=-2.0, high=2.0):
    return RANDOM.uniform(low, high, shape).astype(np.float32)


def check(driver, function, *arrays, tolerance=2e-6):
    """The page's results are jax's, relative to the largest: both have 24 bits and sum in orders of their own."""
    program, named = program_at(function, *arrays)
    wanted = jax.tree.leaves(function(*map(jnp.asarray, arrays)))
    results = browser.computed(driver, program, **named)
    assert len(results) == len(wanted)
    for found, right in zip(results, wanted, strict=True):
        right = np.asarray(right, np.float64).ravel()
        scale = max(1.0, np.abs(right[np.isfinite(right)]).max(initial=0))
        np.testing.assert_allclose(found, right, rtol=0, atol=tolerance * scale)


# Arithmetic

X, Y, POSITIVE, UNIT = floats(3, 4), floats(3, 4), floats(3, 4, low=0.1, high=3.0), floats(3, 4, low=-0.95, high=0.95)
NUMBERS, OTHERS = RANDOM.randint(-9, 10, (3, 4)).astype(np.int32), RANDOM.randint(1, 5, (3, 4)).astype(np.int32)
HALVES = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.4, -2.6], np.float32)
BY_NOTHING = np.array([[7, -7, 0, -(2**31), 9], [0, 0, 0, -1, -2]], np.int32)
HOLES = np.array([[1, np.nan, 5, np.nan], [np.nan, np.inf, 2, -3], [4, np.inf, -np.inf, 2]], np.float32)
WIDE = np.array([-50, -6.5, -3, -1e-4, 0, 1e-4, 0.3, 2, 5.9, 50], np.float32)


@jax.custom_vjp
def tripled(x):
    return 3 * x


tripled.defvjp(lambda x: (3 * x, None), lambda _, y: (3 * y,))

UNARY = {
    **dict.fromkeys(
        ("abs", "atan", "asinh", "cbrt", "ceil", "cos", "cosh", "exp", "exp2", "expm1", "floor", "logistic", "neg"), X
    ),
    **dict.fromkeys(("sign", "sin", "sinh", "square", "tan", "tanh"), X),
    **dict.fromkeys(("log", "log1p", "rsqrt", "sqrt"), POSITIVE),
    **dict.fromkeys(("acos", "asin", "atanh"), UNIT),
    "acosh": POSITIVE + 1,
    "erf": WIDE,
    "erfc": WIDE,
    "is_finite": np.array([1, np.inf, -np.inf, np.nan], np.float32),
}


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_number(blank, name):
    check(blank, getattr(lax, name), UNARY[name])


@pytest.mark.parametrize(
    "name", ["add", "atan2", "div", "eq", "ge", "gt", "le", "lt", "max", "min", "mul", "ne", "sub"]
)
def test_functions_of_two_numbers(blank, name):
    same = Y.copy()
    same[1] = X[1]
    check(blank, getattr(lax, name), X, same)


def test_small_complements_of_erf_are_kept(blank):
    x = np.concatenate([np.linspace(-9, 9, 289), [1.999, 2.001, 5.999, 6.001]]).astype(np.float32)
    program, named = program_at(lambda x: (lax.erfc(x), jnp.log(lax.erfc(x))), x)
    found, logarithms = browser.computed(blank, program, **named)
    right = special.erfc(x.astype(float))
    np.testing.assert_allclose(found, right, rtol=1e-4)
    np.testing.assert_allclose(logarithms, np.log(right), rtol=0, atol=1e-4)
    ends = np.array([-np.inf, 20, np.inf, np.nan], np.float32)
    assert str(browser.computed(blank, *program_at(lax.erfc, ends)[:1], x0=ends)[0]) == "[ 2.  0.  0. nan]"


SHIFTS = {
    "jnp.pow": (lambda x, y: x**y, POSITIVE, Y),
    "integer_pow": (lambda x: (x**3, x**-2), X),
    "rem": (lax.rem, X, POSITIVE),
    "mul of whole numbers": (lambda a, b: a * b * 100_003, NUMBERS, OTHERS),
    "div of whole numbers": (lambda a, b: (lax.div(a, b), lax.rem(a, b), a // b, a % b), NUMBERS, OTHERS),
    "div of whole numbers by 0": (lambda a, b: (lax.div(a, b), lax.rem(a, b), a // b, a % b), *BY_NOTHING),
    "pow of whole numbers": (lambda a, b: (a**b, a**3), NUMBERS, OTHERS),
    "shifts": (lambda a, b: (a << b, a >> b, lax.shift_right_logical(a, b), a << (30 + b)), NUMBERS, OTHERS),
    "bits": (lambda a, b: (a & b, a | b, a ^ b, ~a), NUMBERS, OTHERS),
    "truth": (lambda a, b: (~(a > b), (a > 0) & (b > 2), (a > 0) | (b > 2), (a > 0) ^ (b > 2)), NUMBERS, OTHERS),
    "round": (lambda x: (jnp.round(x), lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO)), HALVES),
    "clamp": (lambda x, y: jnp.clip(x, -0.5, y), X, POSITIVE),
    "where": (lambda x, y: jnp.where(x > y, x, y * 2), X, Y),
    "select of three": (lambda n, x: lax.select_n(n % 3, x, -x, x * 10), OTHERS, X),
    "scalars": (lambda x: jnp.where(x.sum() > 0, 3 * x, x - x.mean()), X),
    "converted": (lambda x: ((2.6 * x).astype(jnp.int32), (x > 0).astype(jnp.float32), x.astype(bool)), X),
    "broadcast": (lambda x, y: x[:, None, :] * y[None, :, :1] + x.sum(0)[None, None], X, Y),
    "two known axes": (lambda x: x + np.ones((3, 1), np.float32) * np.arange(4, dtype=np.float32), X),
    "reshaped": (lambda x: (x.reshape(2, 6), x.T.reshape(-1), x[None, ..., None].squeeze()), X),
    "transposed": (lambda x: jnp.transpose(x.reshape(3, 2, 2), (2, 0, 1)), X),
    "reversed": (lambda x: (x[::-1], x[:, ::-1], x[::-1, ::-1] + x), X),
    "sliced": (lambda x: (x[1:], x[:, 1:3], x[::2, ::3], lax.slice(x, (1, 0), (3, 3), (1, 2))), X),
    "split": (lambda x: jnp.split(x, [1, 3], 1), X),
    "concatenated": (lambda x, y: jnp.concatenate([x, y[:, :1], np.ones((3, 2), np.float32)], 1), X, Y),
    "stacked": (lambda x, y: [jnp.stack([x, y, np.ones((3, 4), np.float32)], axis) for axis in (0, 1, -1)], X, Y),
    "stacked truth": (lambda n: jnp.stack([n > 0, n > 3]), NUMBERS),
    "unstacked": (lambda x: (*jnp.unstack(x), *jnp.unstack(x.reshape(3, 2, 2), axis=1), *jnp.unstack(x, axis=-1)), X),
    "padded": (lambda x: (jnp.pad(x, ((1, 0), (2, 3))), jnp.pad(x, 1, constant_values=7)), X),
    "padded inside": (lambda x: lax.pad(x, np.float32(-1), [(1, 2, 1), (0, 1, 2)]), X),
    "padded and cut": (lambda x: lax.pad(x, np.float32(5), [(-1, 1, 0), (-2, -1, 1)]), X),
    "cut to nothing": (lambda x: lax.pad(x, np.float32(5), [(-4, 6, 0), (0, 0, 0)]), X),
    "summed": (lambda x: (x.sum(), x.sum(0), x.sum(1), x.reshape(3, 2, 2).sum((0, 2)), x.mean(-1)), X),
    "extremes": (lambda x: (x.max(0), x.min(1), x.argmax(1), x.argmin(0), x.prod(1)), X),
    "extremes with NaN": (lambda x: (x.argmax(1), x.argmin(1), x.argmax(0), x.argmin(0)), HOLES),
    "any and all": (lambda x: ((x > 0).any(0), (x > -1).all(1)), X),
    "cumulated": (lambda x: (x.cumsum(0), x.cumsum(1), x.cumprod(1), lax.cummax(x, 0), lax.cummin(x, 1)), X),
    "cumulated backwards": (lambda x: (lax.cumsum(x, 0, True), lax.cumlogsumexp(x, 0, True)), X),
    "cumulated logarithms": (lambda x: lax.cumlogsumexp(x, 1), X),
    "taken": (lambda n, x: (x[n % 3], jnp.take(x, n % 4, 1), x[n % 3, n % 4]), OTHERS, X),
    "taken outside": (lambda n, x: jnp.take(x, n, 0, mode="fill"), NUMBERS, X),
    "taken outside, filled": (
        lambda n, x: [
            *(jnp.take(x, n, 0, mode="fill", fill_value=fill) for fill in (np.inf, -np.inf, np.nan, 0.1)),
            jnp.take(n, n, 0, mode="fill"),
            jnp.take(n, n, 0, mode="fill", fill_value=7),
            jnp.take(x > 0, n, 0, mode="fill"),
            jnp.take(x > 0, n, 0, mode="fill", fill_value=False),
        ],
        NUMBERS,
        X,
    ),
    "taken from known": (lambda n: jnp.asarray(X)[n % 3, :2], OTHERS),
    "taken along": (lambda n, x: jnp.take_along_axis(x, n % 3, 0), OTHERS, X),
    "sliced somewhere": (lambda n, x: lax.dynamic_slice(x, (n[0, 0], n[0, 1] - 7), (2, 3)), OTHERS, X),
    "one-hot": (lambda n: jax.nn.one_hot(n, 5), OTHERS),
    "log softmax": (lambda x: (jax.nn.log_softmax(30 * x), jax.nn.logsumexp(x, 0), jax.nn.softplus(9 * x)), X),
    "activations": (lambda x: [f(x) for f in (jax.nn.gelu, jax.nn.silu, jax.nn.elu, jax.nn.relu)], X),
    "exact gelu": (lambda x: jax.nn.gelu(x, approximate=False), X),
    "checkpoint": (lambda x: jax.checkpoint(lambda x: jnp.sin(x) * x)(x), X),
    "scan": (lambda x: lax.scan(lambda c, row: (c * 0.5 + row, c.sum()), jnp.zeros(4), x), X),
    "scan backwards": (lambda x: lax.scan(lambda c, row: (c * row, c + row), jnp.ones(4), x, reverse=True), X),
    "cond of a known number": (lambda x: lax.cond(jnp.asarray(3) > 2, jnp.sin, jnp.cos, x), X),
    "products": (lambda x, y: (x @ y.T, x.T @ y, x[0] @ y[1], jnp.einsum("ij,ik->jk", x, y)), X, Y),
    "products in a batch": (lambda x: jnp.einsum("bij,bjk->bik", x.reshape(3, 2, 2), x.reshape(3, 2, 2)), X),
    "an own derivative": (lambda x: (jax.nn.relu6(4 * x), tripled(x)), X),
}  # fmt: skip


@pytest.mark.parametrize("name", SHIFTS)
def test_operations_on_arrays(blank, name):
    function, *arrays = SHIFTS[name]
    check(blank, function, *arrays)


CONVOLUTIONS = {
    "plain": {},
    "strided": {"window_strides": (2, 3), "padding": [(1, 2), (0, 1)]},
    "transposed": {"lhs_dilation": (2, 3), "padding": [(2, 1), (3, 2)]},
    "both": {"window_strides": (3, 2), "lhs_dilation": (2, 4), "padding": [(2, 2), (3, 1)]},
    "spread taps": {"rhs_dilation": (2, 1), "padding": [(3, 2), (1, 1)]},
    "cut": {"padding": [(-1, 0), (1, -2)]},
    "groups": {"feature_group_count": 2},
}


@pytest.mark.parametrize("order", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("CHWN", "HWIO", "HWNC")])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(blank, name, order):
    options = {"window_strides": (1, 1), "padding": [(0, 0), (0, 0)], **CONVOLUTIONS[name]}
    sizes = {"N": 2, "H": 7, "W": 6, "C": 4, "I": 4 // options.get("feature_group_count", 1), "O": 6}
    images, kernel = (
        floats(*(3 if axis in "HW" and spec == order[1] else sizes[axis] for axis in spec)) for spec in order[:2]
    )
    check(blank, lambda x, k: lax.conv_general_dilated(x, k, dimension_numbers=order, **options), images, kernel)


def test_a_convolution_along_one_axis(blank):
    check(blank, lambda x, k: lax.conv_general_dilated(x, k, (2,), [(1, 2)], (2,)), floats(2, 3, 8), floats(5, 3, 4))


@pytest.mark.parametrize(
    ("function", "array", "found"),
    [
        (lambda x: jnp.sort(x), X, "found sort$"),
        (lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x), X, "found while$"),
        (lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, length=1000)[0], X, "a loop of 1,000 passes"),
        (lambda x: lax.conv(x, x, (1, 1, 1), "SAME"), floats(1, 1, 3, 3, 3), "3 axes"),
        *((jnp.square, np.arange(3).astype(name), f"found {name}$") for name in ("uint32", "int8", "uint8", "int16")),
        (lambda x: x.astype(jnp.int8).astype(jnp.float32), X, "found int8$"),
        (lambda n: lax.reduce_and(n, (0,)), NUMBERS, "found reduce_and of int32$"),
        (lambda n: lax.reduce_or(n, (0,)), NUMBERS, "found reduce_or of int32$"),
        (lambda x: x.argmax(), X, None),
    ],
)  # fmt: skip
def test_what_a_page_cannot_compute_is_refused_by_name(function, array, found):
    if found is None:
        program_at(function, array)
        return
    with pytest.raises(UserError, match=f"^decoder: expected .*{found}"):
        program_at(function, array)


def test_whole_numbers_beyond_32_bits_are_refused():
    with pytest.raises(UserError, match="whole numbers of 32 bits; found 4294967296"):
        steps.Steps().slot(np.array([1, 2**32]))


def test_what_does_not_depend_on_the_arguments_is_computed_before():
    known = jnp.asarray(POSITIVE)
    program, _ = program_at(lambda x: x * jnp.broadcast_to((1 / jnp.sqrt(known)).sum(), (100, 100))[:3, :4], X)
    assert [step["op"] for step in program.steps] == ["input", "constant", "binary"]
    assert program.steps[1]["stored"] == (1, 1)  # what is repeated is kept once
    assert len(json.dumps(program.as_json())) < 500


# Networks


SMALL = {"model.latent": 3, "model.channels": (4, 6), "model.hidden": 8}
UNIFORM = {"prior.name": "uniform"}
CODES = {
    "model.network": "mlp",
    "model.layers": (8,),
    "posterior.places": (4,),
    "model.latent": 3,
    "prior.name": "uniform",
}
MODELS = {
    "convolutional": SMALL,
    "convolutional, products": {**SMALL, "model.convolution": "matmul"},
    "convolutional, without BatchNorm": {**SMALL, "model.batch_norm": False, "model.activation": "gelu"},
    "convolutional, odd": {**SMALL, "model.kernel": 3, "model.strides": (1, 2), "model.activation": "elu"},
    "conditional": {**SMALL, "model.classes": 3},
    "residual": {"model.network": "residual", "model.latent": 3, "model.channels": (4, 8)},
    "mlp": {"model.network": "mlp", "model.layers": (8, 5), "model.activation": "silu"},
    "mlp, conditional": {"model.network": "mlp", "model.layers": (8,), "model.classes": 4, "model.activation": "tanh"},
    "gaussian": {**SMALL, "likelihood.name": "gaussian", "likelihood.variance": "pixel"},
    "discretized_logistic": {**SMALL, "likelihood.name": "discretized_logistic"},
    "continuous_bernoulli": {**SMALL, "likelihood.name": "continuous_bernoulli"},
    "autoencoder": {**SMALL, "objective.name": "autoencoder"},
    "codebook": {**CODES, "posterior.name": "codebook", "posterior.codes": 16},
    "codebook of stages": {**CODES, "posterior.name": "codebook", "posterior.codes": 5, "posterior.stages": 2},
    "codebook, map": {"posterior.name": "codebook", "posterior.codes": 7, "model.channels": (4, 6), **UNIFORM},
    "fsq": {**CODES, "posterior.name": "fsq", "posterior.levels": (5, 4, 3)},
    "lfq": {**CODES, "posterior.name": "lfq"},
    "categorical": {"model.network": "mlp", "posterior.name": "categorical", "posterior.classes": 4, **UNIFORM},
    "bernoulli": {"model.network": "mlp", "posterior.name": "bernoulli", **UNIFORM, "objective.name": "score_vae"},
    "own hierarchy": {"model.network": f"{OWN / 'ladder.py'}:ladder"},
    "own transformer": {"model.network": f"{OWN / 'vit.py'}:ViT"},
    "own of Flax": {"model.network": f"{OWN / 'groupnorm.py'}:GroupNormNet"},
}  # fmt: skip


def fresh(options, shape=(8, 8, 1)):
    """The configuration, its model in use, and variables that are no longer those of the beginning."""
    config = adapted(Config(), **options)
    built = build(config, shape)
    variables = built.init(jax.random.key(3), jnp.asarray(RANDOM.randint(0, 256, (64, *shape)), jnp.uint8))

    def moved(leaf):  # positive, as variances must stay, and with statistics and biases that are not 0 or 1
        drawn = RANDOM.uniform(0.8, 1.2, leaf.shape)
        return jnp.asarray(leaf * drawn + 0.05 * drawn, leaf.dtype) if leaf.dtype == np.float32 else leaf

    variables = Variables(variables.params, jax.tree.map(moved, variables.state))
    return config, built.composition, make_model(*built, variables), variables


def check_decoder(driver, options, shape=(8, 8, 1), tolerance=TOLERANCE):
    config, composition, model, variables = fresh(options, shape)
    codes, count = composition.posterior.codes, 3
    program = explore.decoder_program(config, shape, variables)
    if codes:
        z = RANDOM.randint(0, codes.values, (count, *codes.shape)).astype(np.int32)
    else:
        z = 1.5 * RANDOM.randn(count, *composition.latent_shape).astype(np.float32)
    labels = np.arange(count) % composition.classes if composition.classes else None
    wanted = np.asarray(model.decode(z, labels)).reshape(count, -1)
    assert np.ptp(wanted) > 1e-3
    for row in range(count):
        given = {} if labels is None else {"label": labels[row]}
        found = browser.computed(driver, program, z=z[row], **given)[0]
        np.testing.assert_allclose(found, wanted[row], rtol=0, atol=tolerance)
    return program


@pytest.mark.parametrize("name", MODELS)
def test_a_page_decodes_as_the_model_does(blank, name):
    assert not check_decoder(blank, MODELS[name]).coarse


def test_the_articles_decoder_is_small(blank):
    program = check_decoder(blank, {}, (32, 32, 1))  # the default configuration has the article's model
    assert len(json.dumps(program.as_json())) < 700_000  # 108,433 parameters, four bytes each, in base64


def test_colours_and_larger_images(blank):
    check_decoder(blank, {"model.channels": (3, 4, 5, 6)}, (20, 20, 3))


def test_coarse_products_are_said(blank):
    assert check_decoder(blank, {**SMALL, "model.precision": "bfloat16"}, tolerance=explore.COARSE).coarse
