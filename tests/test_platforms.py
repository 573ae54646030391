"""What is built for a platform, wherever it is built."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vae_jax import optimizer
from vae_jax.config import Config, ModelConfig, TrainConfig
from vae_jax.device.platforms import PLATFORMS
from vae_jax.model.build import build
from vae_jax.programs import staging
from vae_jax.programs.packing import is_packed, pack, unpack
from vae_jax.runs.fit import fit
from vae_jax.training import several
from vae_jax.training.loop import make_packing
from vae_jax.training.start import start
from vae_jax.training.step import make_step

CONFIG = Config(model=ModelConfig(channels=(4, 6), latent=3), train=TrainConfig(epochs=2, batch_size=16))
SHAPE = (8, 8, 1)


@pytest.mark.parametrize("network", ["convolutional", "residual"])
def test_a_model_is_that_of_the_platform_it_is_built_for(network):
    config = Config(model=ModelConfig(network=network, channels=(4, 6), latent=3))
    images = jnp.zeros((256, *SHAPE), jnp.uint8)
    programs = {}
    for name, platform in PLATFORMS.items():
        composition, objective = build(config, SHAPE, platform)
        assert composition.platform is platform
        state = jax.eval_shape(lambda: start(config, SHAPE, len(images)))
        step = jax.jit(make_step(config, composition, objective, optimizer.build(config, 1)))
        programs[name] = step.lower(state.variables, state.opt_state, images, jax.random.key(0)).as_text()
    native = {name: "stablehlo.convolution" in program for name, program in programs.items()}
    assert native == {name: platform.convolution == "native" for name, platform in PLATFORMS.items()}
    # 256 images are two tiles on a CPU.
    assert {name: "tensor<2x128x8x8x1xf" in program for name, program in programs.items()} == {
        name: name == "cpu" for name in PLATFORMS
    }


def on_accelerator(monkeypatch, **changes):
    """This process's platform with loops as on a GPU; what is computed stays its own."""
    gpu, here = PLATFORMS["gpu"], jax.default_backend()
    as_there = {"length": gpu.length, "packed": gpu.packed, "one_pass": gpu.one_pass, **changes}
    monkeypatch.setitem(PLATFORMS, here, PLATFORMS[here]._replace(**as_there))


def losses(history):
    return [[figures[name] for name in figures if "loss" in name] for figures in history]


@pytest.mark.optimized
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("network", ["convolutional", "mlp"])
def test_loops_of_known_length_train_the_same(network, small_data, monkeypatch):
    sizes = {"channels": (4, 6)} if network == "convolutional" else {"layers": (7, 5)}
    config = Config(model=ModelConfig(network=network, latent=3, **sizes), train=TrainConfig(epochs=2, batch_size=8))
    expected = fit(config, small_data)
    states, shown = [], []
    on_accelerator(monkeypatch, length=3)
    found = fit(
        replace(config, train=replace(config.train, chunk_steps=5)),
        small_data,
        on_chunk=lambda state, history: states.append((jax.tree.map(np.asarray, state), list(history))),
        on_progress=lambda progress: shown.append(progress.step),
    )
    assert shown == [5, 8, 5, 8]  # of nine steps, the last of which has fewer images
    assert jax.tree.structure(found.state) == jax.tree.structure(expected.state)
    np.testing.assert_allclose(losses(found.history), losses(expected.history), rtol=1e-9)
    # Inside an epoch the state is that of a run to be resumed anywhere; by other calls, and by itself.
    state, history = states[2]
    assert int(state.step) == 14
    resumed = fit(config, small_data, resume=(state, history))
    assert losses(resumed.history) == losses(found.history)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, found.state)


@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.usefixtures("float64")
def test_members_train_the_same_in_loops_of_known_length(side_by_side, small_data, monkeypatch):
    config = Config(model=ModelConfig(network="mlp", latent=3, layers=(7,)), train=TrainConfig(epochs=2, batch_size=8))
    configs = [replace(config, seed=seed) for seed in (0, 1)]
    expected = [fit(config, small_data).history for config in configs]
    on_accelerator(monkeypatch, length=3)
    if side_by_side:
        monkeypatch.setattr(several, "_over_members", jax.vmap)
    program = several.program_that_fits(configs, several.Images(small_data))
    looks = []
    ended = several.fit(
        program,
        [several.Run(config) for config in configs],
        on_chunk=lambda numbers, look: looks.append(look(1)[0]),
    )
    for (state, history), alone in zip(ended, expected, strict=True):
        assert jax.tree.structure(state) == jax.tree.structure(looks[0])
        assert int(state.step) == 18
        np.testing.assert_allclose(losses(history), losses(alone), rtol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("clip", [None, 0.5])
def test_our_optimiser_may_have_its_parameters_as_one_vector(clip):
    random = np.random.RandomState(0)
    params = {name: jnp.asarray(random.randn(*shape)) for name, shape in (("a", (3, 40)), ("b", ()), ("c", (5,)))}
    transformation = optimizer.build(Config(train=TrainConfig(gradient_clip=clip, learning_rate=0.1)), 10)
    assert transformation.elementwise

    def after(params, packing):
        params = packing(params)
        state = transformation.init(params)
        for i in range(3):
            gradient = packing(jax.tree.map(lambda leaf, i=i: jnp.sin(leaf * (i + 1)) * 10, unpack(params)))
            change, state = transformation.update(gradient, state, params)
            params = optax.apply_updates(params, change)
        return unpack(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), after(params, lambda tree: tree), after(params, pack)
    )


def test_an_optimiser_that_looks_at_shapes_keeps_its_trees():
    transformation = optimizer.Optimizer(*optax.lamb(0.1))
    state = start(CONFIG, SHAPE, 16)
    state = state._replace(opt_state=transformation.init(state.variables.params))
    packed = make_packing(PLATFORMS["gpu"], transformation).pack(state)
    assert packed.variables.params is state.variables.params
    assert packed.opt_state is state.opt_state
    assert is_packed(packed.variables.state["batch_stats"])


def test_what_is_packed_comes_back():
    tree = {
        "floats": [jnp.arange(6.0).reshape(2, 3), jnp.float32(7)],
        "numbers": (jnp.arange(3), jnp.zeros((0, 2), jnp.int32)),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4), 2),
        "nothing": None,
    }
    packed = pack(tree)
    assert len(packed.vectors) == 4
    for back in (packed.tree(), unpack({"one": packed})["one"], jax.jit(lambda tree: pack(tree))(tree).tree()):
        assert jax.tree.structure(back) == jax.tree.structure(tree)
        for now, then in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
            assert now.dtype == then.dtype
            if jnp.issubdtype(now.dtype, jax.dtypes.prng_key):
                now, then = jax.random.key_data(now), jax.random.key_data(then)
            np.testing.assert_array_equal(now, then)


def test_a_loops_body_keeps_only_what_depends_on_the_state():
    """What is drawn is drawn before the loop, and the results are the same."""

    def turn(i, carried):
        x, total = carried
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), i), (4,))
        kept = jax.random.bernoulli(jax.random.fold_in(jax.random.key(2), i), 0.5, x.shape)
        x = jnp.where(kept, jnp.sin(x) + noise, x)
        return x, total + jax.lax.cond(i > 3, lambda: x.sum(), lambda: 2 * x.sum())

    start = jnp.arange(4.0), jnp.float32(0)
    expected = jax.jit(lambda carried: jax.lax.fori_loop(0, 7, turn, carried))(start)
    ours = jax.jit(lambda carried: staging.loop(7, turn, carried))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours(start), expected)
    (scan,) = [
        equation for equation in jax.make_jaxpr(ours)(start).jaxpr.eqns[0].params["jaxpr"].eqns
        if equation.primitive.name == "scan"
    ]  # fmt: skip
    inside = {equation.primitive.name for equation in scan.params["jaxpr"].eqns}
    assert "sin" in inside
    assert not {"random_bits", "random_fold_in", "erf_inv"} & inside


def test_a_loops_body_gathers_what_it_only_moves():
    def turn(i, carried):
        vector, total = carried
        kernel = jax.lax.split(vector, (64, 96))[1].reshape(2, 6, 8)
        padded = jnp.pad(kernel, ((0, 0), (0, 2), (0, 0))).transpose(2, 0, 1)[::-1]
        return vector.at[i].add(1), total + jnp.sin(padded).sum() + jnp.cos(kernel.transpose(1, 2, 0)).sum()

    start = jnp.arange(160.0), jnp.float32(0)
    ours = jax.jit(lambda carried: staging.loop(7, turn, carried))
    expected = jax.jit(lambda carried: jax.lax.fori_loop(0, 7, turn, carried))(start)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours(start), expected)
    (scan,) = [
        equation for equation in jax.make_jaxpr(ours)(start).jaxpr.eqns[0].params["jaxpr"].eqns
        if equation.primitive.name == "scan"
    ]  # fmt: skip
    inside = [equation.primitive.name for equation in scan.params["jaxpr"].eqns]
    assert inside.count("gather") == 1
    assert not {"transpose", "rev", "pad"} & set(inside)


def test_numbers_that_are_rounded_and_moved_are_rounded_as_often():
    def turn(i, carried):
        vector, total = carried
        rounded = vector.reshape(8, 8).T.astype(jnp.bfloat16)
        whole = vector.reshape(8, 8).astype(jnp.int32).astype(jnp.float32).T
        iota = jax.lax.iota(jnp.float32, 64)
        return vector + iota, total + jnp.sin(rounded.astype(jnp.float32).T + whole).sum() + i

    start = jnp.arange(64.0) / 7, jnp.float32(0)
    expected = jax.jit(lambda carried: jax.lax.fori_loop(0, 3, turn, carried))(start)
    found = jax.jit(lambda carried: staging.loop(3, turn, carried))(start)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


@pytest.mark.parametrize(
    "move",
    [
        lambda x: jax.lax.slice(x, (1, 0, 2), (4, 3, 5)),
        lambda x: jax.lax.slice(x, (0, 1, 0), (4, 3, 5), (2, 1, 3)),
        lambda x: jax.lax.split(x, (1, 3, 1), 2),
        lambda x: x.reshape(5, 12),
        lambda x: jax.lax.reshape(x, (12, 5), (2, 1, 0)),
        lambda x: jax.lax.squeeze(x[:1], (0,)),
        lambda x: x.transpose(2, 0, 1),
        lambda x: jax.lax.rev(x, (0, 2)),
        lambda x: jax.lax.pad(x, jnp.int32(-1), ((1, 2, 0), (0, 0, 2), (0, 1, 1))),
        lambda x: jax.lax.pad(x, jnp.int32(-1), ((-1, 2, 0), (1, -2, 1), (-2, -1, 0))),
        lambda x: jax.lax.pad(x, jnp.int32(-1), ((6, -5, 0), (-4, 9, 0), (-1, 0, 0))),
        lambda x: jax.lax.broadcast_in_dim(x, (4, 1, 3, 5), (0, 2, 3)),
        lambda x: x.astype(jnp.float32),
    ],
    ids=[
        "slice",
        "strides",
        "split",
        "reshape",
        "columns",
        "squeeze",
        "transpose",
        "rev",
        "pad",
        "cut",
        "far",
        "broadcast",
        "convert",
    ],
)
def test_places_move_as_jax_moves_numbers(move):
    places = np.arange(60, dtype=np.int32).reshape(4, 3, 5)
    equation = jax.make_jaxpr(move)(places).eqns[-1]
    assert equation.primitive.name in staging.MOVING
    given = places[:1] if equation.primitive.name == "squeeze" else places
    found, expected = staging._moved(equation, given), jax.tree.leaves(move(jnp.asarray(places)))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def both_loops(turn, carried, length=4):
    """What the turns give in our loop and in jax's."""
    loops = (
        (lambda carried: staging.loop(length, turn, carried)),
        lambda carried: jax.lax.fori_loop(0, length, turn, carried),
    )
    return [jax.jit(loop)(carried) for loop in loops]


def test_a_kernel_read_by_columns_is_moved_as_jax_does():
    def turn(i, carried):
        vector, total = carried
        kernel = jnp.reshape(vector, (8, 12), order="F")
        return vector + 1, total + jnp.arange(12.0) @ kernel.T @ jnp.arange(8.0) + kernel[::-1].ravel("F")[3]

    ours, jaxs = both_loops(turn, (jnp.arange(96.0), jnp.float32(0)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, jaxs)


def test_what_a_turn_prints_is_printed(capfd):
    def turn(i, x):
        jax.debug.print("turn {i}", i=i)
        return x * 2

    both_loops(turn, jnp.float32(1))
    jax.effects_barrier()
    assert capfd.readouterr().out.splitlines() == 2 * [f"turn {i}" for i in range(4)]


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_draws_are_those_of_single_turns_whatever_the_keys(kind):
    key = jax.random.key(0, impl=kind)

    def turn(i, x):
        own = jax.random.fold_in(key, i)
        return x + jax.random.normal(own, (5,)) * jax.random.bernoulli(jax.random.fold_in(own, 1), 0.5, (5,))

    ours, jaxs = both_loops(turn, jnp.zeros(5))
    np.testing.assert_allclose(ours, jaxs, rtol=1e-6)


def test_what_has_no_rule_for_many_turns_at_once_runs_as_elsewhere():
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)

    def turn(i, x):
        return x + jax.pure_callback(lambda i: np.full(3, i, np.float32), shape, i)

    ours, jaxs = both_loops(turn, jnp.zeros(3))
    np.testing.assert_array_equal(ours, jaxs)


def test_numbers_that_depend_on_themselves_alone_are_known_before_the_loop():
    """A count that stops, what is computed of it, one that the turn's number moves, and one that another is made of."""

    def turn(i, carried):
        count, moved, other, same, x, total = carried
        rate = jnp.sin(1 / (1.0 + count)) * moved + same
        then = jnp.where(count < 2, count + 1, count), moved * 2 + i, other + count, same
        return *then, x * rate, total + x.sum() * other

    start = jnp.int32(0), jnp.float32(1), jnp.int32(5), jnp.float32(0.5), jnp.arange(4.0), jnp.float32(0)
    ours, jaxs = both_loops(turn, start)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, jaxs)
    program = jax.make_jaxpr(lambda carried: staging.loop(4, turn, carried))(start)
    *_, last = (equation for equation in program.eqns if equation.primitive.name == "scan")
    assert {equation.primitive.name for equation in last.params["jaxpr"].eqns} == {"mul", "reduce_sum", "add"} | (
        {"broadcast_in_dim", "convert_element_type"}
        & {equation.primitive.name for equation in last.params["jaxpr"].eqns}
    )


def test_keys_that_are_carried_are_left_where_they_are():
    def turn(i, carried):
        keys, total = carried
        return keys[::-1], total + jax.random.uniform(keys.reshape(8, 8).T[1, 2])

    with jax.debug_key_reuse(False):
        ours, jaxs = both_loops(turn, (jax.random.split(jax.random.key(0), 64), jnp.float32(0)))
    np.testing.assert_allclose(ours[1], jaxs[1], rtol=1e-6)


def test_plain_numbers_are_packed_as_arrays():
    packed = pack({"a": 1.0, "b": jnp.arange(3.0), "c": 2})
    jax.tree.map(np.testing.assert_array_equal, unpack(packed), {"a": 1.0, "b": np.arange(3.0), "c": 2})
