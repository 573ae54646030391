"""The training loop: what a step does, that chunks change nothing, that nothing recompiles, what is refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from run_fixtures import optimized

from vae_jax import optimizer
from vae_jax.config import Config, ModelConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from vae_jax.data import Dataset, Split
from vae_jax.errors import Diverged, UserError
from vae_jax.keys import make_keys
from vae_jax.model.build import build
from vae_jax.objectives import OBJECTIVES, Objective
from vae_jax.runs.fit import fit
from vae_jax.runs.train import train
from vae_jax.sweeps.plan import Sweep
from vae_jax.sweeps.sweep import run
from vae_jax.training import several, single
from vae_jax.training.loop import begin_loop, make_loop
from vae_jax.training.single import epoch_order
from vae_jax.training.start import start
from vae_jax.training.state import Fixed, TrainState
from vae_jax.training.step import make_step

# 70 images in batches of 16: four full batches and one of 6.
CONFIG = Config(model=ModelConfig(channels=(4, 6), latent=3), train=TrainConfig(epochs=2, batch_size=16))
# For what has nothing to do with the network: compiling it takes a third of the time.
PLAIN = replace(CONFIG, model=ModelConfig(network="mlp", layers=(5,), latent=3))


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def with_train(config=CONFIG, **changes):
    return replace(config, train=replace(config.train, **changes))


@pytest.fixture(scope="module")
def trained(small_data):
    with optimized():
        return fit(CONFIG, small_data)


@pytest.fixture(scope="module")
def plain_trained(small_data):
    with optimized():
        return fit(PLAIN, small_data)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            lambda: jax.disable_jit(),
            "jax_disable_jit: expected it off, since an epoch is one compiled loop; found it on",
        ),
        (lambda: jax.numpy_dtype_promotion("strict"), "jax_numpy_dtype_promotion: expected standard, .*; found strict"),
    ],
)
@pytest.mark.parametrize("trains", [fit, several.check])
def test_settings_of_jaxs_with_which_nothing_trains_are_refused(small_data, setting, message, trains):
    with setting(), pytest.raises(UserError, match=message):
        trains(PLAIN, small_data)


def parts(config, data):
    """The step, the initial state, the images and the keys of a run."""
    network, objective = build(config, data.image_shape)
    steps = -(-len(data.train) // config.train.batch_size)
    step = make_step(config, network, objective, optimizer.build(config, steps))
    return step, start(config, data.image_shape, len(data.train)), jnp.asarray(data.train.images)


def test_history_and_state(trained, small_data):
    assert [figures["epoch"] for figures in trained.history] == [1, 2]
    assert int(trained.state.step) == 2 * 5
    assert trained.state.sums.shape == (5, 3)
    for figures in trained.history:
        for split in ("train", "validation", "test"):
            loss, reconstruction, kl = (figures[f"{split}_{part}"] for part in ("loss", "reconstruction", "kl"))
            assert loss == pytest.approx(reconstruction + kl, rel=1e-6)
            assert kl > 0
        # The article prints the mean over batches of the batch's sum.
        assert figures["article_train_loss"] == pytest.approx(figures["train_loss"] * 70 / 5)
        assert figures["article_test_loss"] == pytest.approx(figures["test_loss"] * 20 / 2)
        assert figures["images_per_second"] > 0
    assert trained.history[1]["train_loss"] < trained.history[0]["train_loss"]


def test_one_epoch_equals_steps_taken_one_by_one(small_data):
    """Every image once, the last partial batch too, each step with a key folded from its number."""
    config = with_train(epochs=1)
    step, state, images = parts(config, small_data)
    keys = make_keys(config.seed)
    order = jax.random.permutation(jax.random.fold_in(keys.shuffle, 0), 70)
    np.testing.assert_array_equal(np.sort(order), np.arange(70))
    variables, opt_state, total = state.variables, state.opt_state, np.zeros(3)
    one = jax.jit(step)
    for i in range(5):
        batch = images[order[16 * i : 16 * i + 16]]
        assert len(batch) == (16 if i < 4 else 6)
        variables, opt_state, sums = one(variables, opt_state, batch, jax.random.fold_in(keys.steps, i))
        total += np.asarray(sums)
    found = fit(config, small_data)
    assert found.history[0]["train_loss"] == pytest.approx(total[0] / 70, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found.state.variables, variables)


@pytest.mark.optimized
@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_no_bit(trained, small_data, chunk):
    found = fit(with_train(chunk_steps=chunk), small_data)
    same(found.state, trained.state)
    assert [figures["test_loss"] for figures in found.history] == [figures["test_loss"] for figures in trained.history]


@pytest.mark.optimized
@pytest.mark.parametrize("shard_images", [1, 40, 64, 1000])
def test_streaming_changes_no_bit(plain_trained, small_data, shard_images):
    found = fit(with_train(PLAIN, shard_images=shard_images), small_data)
    same(found.state, plain_trained.state)
    for figures, expected in zip(found.history, plain_trained.history, strict=True):
        assert {name: figures[name] for name in figures if "loss" in name} == {
            name: expected[name] for name in expected if "loss" in name
        }


@pytest.mark.usefixtures("float64")
def test_training_in_double_precision(small_data):
    found = fit(with_train(epochs=1, shard_images=32), small_data)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found.state.variables)} == {"float64"}
    assert np.isfinite(found.history[0]["test_loss"])


@pytest.mark.optimized
def test_streaming_goes_on_inside_an_epoch(plain_trained, small_data):
    kept = []
    fit(
        with_train(PLAIN, chunk_steps=1, shard_images=32),
        small_data,
        on_chunk=lambda state, history: kept.append((jax.tree.map(np.asarray, state), list(history))),
    )
    state, history = next(pair for pair in kept if int(pair[0].step) == 8)  # in the middle of a shard
    same(fit(with_train(PLAIN, shard_images=32), small_data, resume=(state, history)).state, plain_trained.state)


@pytest.mark.optimized
def test_chunks_equal_one_scan_bit_for_bit(small_data):
    step, state, images = parts(CONFIG, small_data)
    keys = make_keys(CONFIG.seed)
    order = jax.random.permutation(jax.random.fold_in(keys.shuffle, 0), 70)

    def body(state, i):
        batch = images[jax.lax.dynamic_slice_in_dim(order, i * 16, 16)]
        key = jax.random.fold_in(keys.steps, state.step)
        variables, opt_state, sums = step(state.variables, state.opt_state, batch, key)
        return TrainState(state.step + 1, variables, opt_state, state.sums.at[i].set(sums)), None

    scanned, _ = jax.jit(lambda state: jax.lax.scan(body, state, jnp.arange(4)))(state)
    loop = make_loop(lambda numbers: step, 16, 16)
    chunked = jax.tree.map(jnp.copy, state)
    for first, last in ((0, 1), (1, 4)):
        place = images, None, order, jnp.int32(0), Fixed(keys.steps)
        chunked = loop(chunked, *place, jnp.int32(first), jnp.int32(last))
    same(chunked, scanned)


@pytest.mark.optimized
def test_seeds(plain_trained, small_data):
    same(fit(PLAIN, small_data).state, plain_trained.state)
    other = fit(replace(PLAIN, seed=1), small_data)
    assert other.history[0]["train_loss"] != plain_trained.history[0]["train_loss"]


@pytest.mark.optimized
def test_resuming_changes_no_bit(trained, small_data):
    kept = []

    def stop(state, history):
        if int(state.step) == 7:
            kept.append((jax.tree.map(np.asarray, state), list(history)))

    fit(with_train(chunk_steps=1), small_data, on_chunk=stop)
    (state, history) = kept[0]
    assert len(history) == 1
    resumed = fit(CONFIG, small_data, resume=(state, history))
    same(resumed.state, trained.state)
    assert resumed.history[1]["train_loss"] == trained.history[1]["train_loss"]
    assert resumed.history[1]["test_loss"] == trained.history[1]["test_loss"]
    assert len(history) == 1  # the caller's list stays as it was


def test_nothing_recompiles_after_the_first_epoch(small_data):
    compiled, epochs = [], []
    counting = "/jax/core/compile/backend_compile_duration"

    def count(event, duration, **kwargs):
        if event == counting:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        fit(
            with_train(epochs=4, chunk_steps=3),
            small_data,
            on_progress=lambda progress: None,
            on_epoch=lambda figures, state: epochs.append(len(compiled)),
        )
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert epochs[0] > 0
    assert epochs[1:] == [epochs[0]] * 3


def test_the_loop_moves_nothing_to_or_from_the_device(small_data):
    step, state, images = parts(CONFIG, small_data)
    keys = make_keys(0)
    arguments = images, None, jnp.arange(70), jnp.int32(0), Fixed(keys.steps), jnp.int32(0), jnp.int32(3)
    loop = make_loop(lambda numbers: step, 16, 16).lower(state, *arguments).compile()
    with jax.transfer_guard("disallow"):
        state = loop(state, *arguments)
    assert int(state.step) == 3


def test_a_step_leaks_no_tracer(small_data):
    step, state, images = parts(CONFIG, small_data)
    with jax.checking_leaks():
        jax.jit(step)(state.variables, state.opt_state, images[:16], jax.random.key(0))


def test_progress(small_data):
    seen = []
    fit(with_train(PLAIN, chunk_steps=2), small_data, on_progress=seen.append)
    assert [(p.epoch, p.step) for p in seen] == [(1, 2), (1, 4), (2, 2), (2, 4)]
    assert all(p.steps == 5 and np.isfinite(p.loss) and p.images_per_second > 0 for p in seen)


def batches(data, images):
    return replace(data, train=Split(data.train.images[:images]))


@pytest.mark.parametrize(("images", "size"), [(65, 16), (17, 16), (70, 1), (70, 69)])
def test_a_batch_of_one_image_with_batch_norm_is_refused_with_the_reason(small_data, images, size):
    with pytest.raises(UserError, match=r"train\.batch_size: expected at least two images for .*model\.batch_norm"):
        fit(with_train(batch_size=size), batches(small_data, images))


def test_a_batch_of_one_image_without_batch_norm(small_data):
    config = replace(with_train(epochs=1), model=replace(CONFIG.model, batch_norm=False))
    found = fit(config, batches(small_data, 17))
    assert np.isfinite(found.history[0]["train_loss"])


def test_fewer_images_than_a_batch(small_data):
    found = fit(with_train(PLAIN, epochs=1, batch_size=64), batches(small_data, 10))
    assert int(found.state.step) == 1
    assert found.history[0]["article_train_loss"] == pytest.approx(10 * found.history[0]["train_loss"])


def test_divergence_is_said(small_data):
    config = with_train(PLAIN, learning_rate=1e30, epochs=5)
    expected = (
        r"diverged in epoch 1: the loss of step [2-5] of 5 is (nan|inf); last finite: loss \d+\.\d+ per image in step "
        r"[1-4]; what helps most often: a lower train\.learning_rate \(now 1e\+30\), train\.gradient_clip, "
        r"train\.warmup_steps, train\.skip_nonfinite, if it is rare$"
    )
    with pytest.raises(Diverged, match=expected):
        fit(config, small_data)


def test_divergence_in_the_last_step_is_said(small_data):
    with pytest.raises(
        Diverged, match=r"epoch 1: the (test|validation) loss is (nan|inf); last finite: train loss \d+"
    ):
        fit(with_train(PLAIN, learning_rate=1e30, epochs=1, batch_size=70), small_data)


def broken_loss(marked, kl):
    return jnp.where(marked, jnp.inf, 0.0)


def broken_gradient(marked, kl):
    """The square root of 0, whose derivative is infinite, and 0 elsewhere."""
    return jnp.where(marked, jnp.sqrt(jnp.where(marked, jnp.square(kl - jax.lax.stop_gradient(kl)), 1.0)), 0.0)


@pytest.fixture(params=[broken_loss, broken_gradient])
def one_bad_image(request, small_data, monkeypatch):
    """Data of which training image 7 gives no finite loss, or no finite gradient."""

    def broken(key, model, images, options):
        terms = OBJECTIVES["vae"].terms(key, model, images, ObjectiveConfig().options)
        return terms | {"loss": terms["loss"] + request.param(images.mean((1, 2, 3)) == 1, terms["kl"])}

    monkeypatch.setitem(OBJECTIVES, "broken", Objective(broken, unit=request.param.__name__.split("_")[1]))
    images = small_data.train.images.copy()
    images[7] = 255
    return replace(small_data, train=Split(images, None))


def broken_with(**changes):
    config = with_train(PLAIN, epochs=3, **changes)
    return replace(config, objective=replace(config.objective, name="broken"))


def bad_step(config, epoch):
    order = np.asarray(epoch_order(make_keys(config.seed).shuffle, jnp.int32(epoch), 70))
    return int(np.flatnonzero(order == 7)[0]) // 16


@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_the_step_that_is_not_finite_is_named(one_bad_image, chunk):
    """A loss at once; a gradient by the parameters where a call ends there, or by the next step's loss."""
    seen = []
    config = broken_with(chunk_steps=chunk)
    bad = bad_step(config, 0)
    with pytest.raises(Diverged, match="diverged in epoch 1") as caught:
        fit(config, one_bad_image, on_chunk=lambda state, _: seen.append(int(state.step)))
    assert all(step <= bad for step in seen)  # nothing bad is handed out to be saved
    message = str(caught.value)
    if OBJECTIVES["broken"].unit == "loss":
        assert f"the loss of step {bad + 1} of 5 is inf" in message
    elif (bad + 1) % chunk == 0 or bad >= 3:  # the fifth step has a loop of its own
        assert f"parameters or the optimiser's state are not finite after step {bad + 1} of 5" in message
    else:
        assert f"the loss of step {bad + 2} of 5 is nan" in message


def test_skipping_leaves_a_step_out_and_counts_it(one_bad_image):
    config = broken_with(skip_nonfinite=True)
    found = fit(config, one_bad_image)
    assert [epoch["skipped_steps"] for epoch in found.history] == [1, 1, 1]
    step, state, images = parts(config, one_bad_image)
    step = jax.jit(step)
    keys = make_keys(config.seed)
    for epoch in range(3):
        order = epoch_order(keys.shuffle, jnp.int32(epoch), 70)
        total, count = np.zeros(3), 0
        for i in range(5):
            batch = images[order[16 * i : 16 * i + 16]]
            key = jax.random.fold_in(keys.steps, state.step)
            variables, opt_state, sums = step(state.variables, state.opt_state, batch, key)
            if i == bad_step(config, epoch):
                same((variables, opt_state), (state.variables, state.opt_state))
            else:
                total, count = total + np.asarray(sums, np.float64), count + len(batch)
            state = state._replace(step=state.step + 1, variables=variables, opt_state=opt_state)
        figures = found.history[epoch]
        assert figures["train_loss"] == pytest.approx(total[0] / count, rel=1e-5)
        assert figures["train_kl"] == pytest.approx(total[2] / count, rel=1e-4)
        assert figures["article_train_loss"] == pytest.approx(total[0] / 4, rel=1e-5)
    assert int(found.state.step) == 15
    assert np.isfinite(found.history[-1]["test_loss"])


def test_a_skipped_step_leaves_the_running_statistics(one_bad_image):
    config = replace(broken_with(skip_nonfinite=True), model=CONFIG.model)
    step, state, images = parts(config, one_bad_image)
    step = jax.jit(step)
    for first, skipped in ((0, True), (16, False)):
        variables, _, _ = step(state.variables, state.opt_state, images[first : first + 16], jax.random.key(0))
        pairs = zip(*map(jax.tree.leaves, (variables.state, state.variables.state)), strict=True)
        assert [bool((now == then).all()) for now, then in pairs] == [skipped] * 6  # mean and variance of three


def test_a_gradient_that_overflows_adams_moments_counts_as_not_finite(small_data, monkeypatch):
    """It is finite, and so is the loss; but the moments would be infinite and the parameters never move again."""

    def steep(key, model, images, options):
        terms = OBJECTIVES["vae"].terms(key, model, images, ObjectiveConfig().options)
        marked, kl = images.mean((1, 2, 3)) == 1, terms["kl"]
        return terms | {"loss": terms["loss"] + jnp.where(marked, 1e24 * (kl - jax.lax.stop_gradient(kl)), 0.0)}

    monkeypatch.setitem(OBJECTIVES, "broken", Objective(steep))
    images = small_data.train.images.copy()
    images[7] = 255
    data = replace(small_data, train=Split(images))
    step = bad_step(PLAIN, 0) + 1
    with pytest.raises(Diverged, match=f"parameters or the optimiser's state are not finite after step {step} of 5"):
        fit(broken_with(chunk_steps=1), data)
    assert fit(broken_with(skip_nonfinite=True), data).history[0]["skipped_steps"] == 1


def test_an_epoch_of_nothing_but_skipped_steps_ends_the_run(one_bad_image):
    images = np.full_like(one_bad_image.train.images, 255)
    with pytest.raises(Diverged, match=r"epoch 1: the loss of step 1 of 5 is nan"):
        fit(broken_with(skip_nonfinite=True, chunk_steps=2), replace(one_bad_image, train=Split(images)))


def test_sum_and_mean(small_data):
    """The sum over a batch of 16 has 16 times the mean's gradient, which a clipping threshold shows."""
    found = {}
    for reduction in ("sum", "mean"):
        step, state, images = parts(with_train(reduction=reduction), small_data)
        network, objective = build(CONFIG, small_data.image_shape)
        step = make_step(with_train(reduction=reduction), network, objective, optax.sgd(1.0))
        opt_state = optax.sgd(1.0).init(state.variables.params)
        moved, _, sums = jax.jit(step)(state.variables, opt_state, images[:16], jax.random.key(0))
        found[reduction] = jax.tree.map(jnp.subtract, moved.params, state.variables.params), sums
    np.testing.assert_array_equal(found["sum"][1], found["mean"][1])  # figures do not depend on it
    for a, b in zip(jax.tree.leaves(found["sum"][0]), jax.tree.leaves(found["mean"][0]), strict=True):
        np.testing.assert_allclose(a, 16 * b, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match=r"train\.reduction: .*found 'median'"):
        fit(with_train(reduction="median"), small_data)


def rate(config, epoch, step):
    """The learning rate of a step, read off Adam's first update of a constant gradient."""
    transformation = optimizer.build(config, epoch)
    state = transformation.init(jnp.zeros(1))
    update = jax.jit(transformation.update)
    for _ in range(step + 1):
        change, state = update(jnp.ones(1), state)
    return -float(change[0])


@pytest.mark.parametrize(
    ("schedule", "first", "middle", "last"),
    [("constant", 1, 1, 1), ("cosine", 1, 0.5, 0), ("linear", 1, 0.5, 0), ("exponential", 1, 0.81, 0.6561)],
)
def test_schedules(schedule, first, middle, last):
    config = with_train(epochs=4, learning_rate=0.01, schedule=schedule, decay_rate=0.9)
    for step, factor in ((0, first), (10, middle), (20, last)):
        assert rate(config, 5, step) == pytest.approx(0.01 * factor, rel=1e-3, abs=1e-6)


def test_warmup_and_clipping():
    config = with_train(epochs=3, learning_rate=0.01, warmup_steps=10, schedule="linear")
    assert rate(config, 10, 5) == pytest.approx(0.005, rel=1e-3)
    assert rate(config, 10, 10) == pytest.approx(0.01, rel=1e-3)
    assert rate(config, 10, 20) == pytest.approx(0.005, rel=1e-3)
    decaying = with_train(config, schedule="exponential", decay_rate=0.9)  # a factor per epoch, from the warm-up on
    assert rate(decaying, 10, 20) == pytest.approx(0.009, rel=1e-3)
    adam = OptimizerConfig(eps=1e9)  # which passes the gradient on
    clipped = optimizer.build(Config(optimizer=adam, train=TrainConfig(gradient_clip=0.5, learning_rate=1e9)), 10)
    change, _ = clipped.update(jnp.array([3.0, 4.0]), clipped.init(jnp.zeros(2)))
    np.testing.assert_allclose(change, [-0.3, -0.4], rtol=1e-4)  # with a huge ε Adam passes the gradient on
    with pytest.raises(UserError, match=r"train\.schedule: .*found 'step'"):
        TrainConfig(schedule="step")


@pytest.mark.parametrize("name", ["autoencoder", "denoising_autoencoder"])
def test_autoencoders_train(small_data, name):
    found = fit(replace(with_train(epochs=3), objective=ObjectiveConfig(name=name)), small_data)
    assert found.history[-1]["train_loss"] < found.history[0]["train_loss"]
    assert found.history[-1]["test_kl"] == 0
    assert set(found.state.variables.params["encoder"]) & {"fc_mu", "fc_log_var"} == {"fc_mu"}


def test_training_warns_where_levels_stay_dark(small_data, tmp_path):
    """Of data made by hand: who loads a data set has seen the line, and a copy of it is not looked at again."""
    dark = Dataset("dark", Split(small_data.train.images // 255), small_data.test)
    for begin in (
        lambda data: fit(PLAIN, data),
        lambda data: train(PLAIN, data, tmp_path / "run"),
        lambda data: run(Sweep(PLAIN, 2, {}), data, tmp_path / "sweep"),
    ):
        with pytest.raises(UserWarning, match=r"^dark: white is 255, but the brightest level is 1 among the train"):
            begin(dark)
    assert not list(tmp_path.glob("*/*"))
    assert not small_data.darkness()


def test_a_dataset_without_labels_or_validation(small_data):
    data = Dataset("plain", Split(small_data.train.images), Split(small_data.test.images))
    assert "validation_loss" not in fit(with_train(PLAIN, epochs=1), data).history[0]


def test_nothing_begins_before_all_is_compiled(small_data, monkeypatch):
    """A last, smaller batch's program that cannot be compiled is refused before an earlier run is deleted."""

    def begin(lowered, pool):
        begun.append(real(lowered, pool))
        return begun[-1] if len(begun) == 1 else lambda: 1 / 0

    begun, real, started = [], begin_loop, []
    monkeypatch.setattr(single, "begin_loop", begin)
    with pytest.raises(ZeroDivisionError):
        fit(CONFIG, small_data, on_start=lambda: started.append(True))
    assert len(begun) == 2
    assert not started
