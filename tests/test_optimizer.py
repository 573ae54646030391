"""Optimisers: values against optax used by hand, decay of kernels, averages, accumulation, runs and resumed runs."""

from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from vae_jax import optimizer
from vae_jax.config import Config, ModelConfig, TrainConfig, with_options
from vae_jax.errors import UserError
from vae_jax.model.build import build
from vae_jax.optimizer import OPTIMIZERS
from vae_jax.programs.packing import pack, unpack
from vae_jax.runs.fit import fit
from vae_jax.training import several
from vae_jax.training.step import make_step

PLAIN = Config(model=ModelConfig(network="mlp", layers=(5,), latent=3), train=TrainConfig(epochs=2, batch_size=16))
PARAMS = {
    "layer": {"kernel": np.linspace(-1, 1, 12).reshape(3, 4), "bias": np.linspace(1, 2, 4)},
    "convolution": {"kernel": np.linspace(-2, 1, 24).reshape(2, 2, 2, 3)},
    "prior": {"mu": np.linspace(0, 1, 6).reshape(2, 3)},
}
RATE = 0.1
KERNELS = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", PARAMS)


def built(name, **options):
    return optimizer.build(
        with_options(Config(), **{"optimizer.name": name, "train.learning_rate": RATE} | options), 10
    )


def trained(rule, params=PARAMS, steps=4, packing=lambda tree: tree, factor=1.0):
    """The parameters, and those that are evaluated, after steps with gradients that depend on both."""
    params = packing(jax.tree.map(jnp.asarray, params))
    state = rule.init(params)
    for i in range(steps):
        gradient = packing(jax.tree.map(lambda leaf, i=i: factor * jnp.sin(leaf * (i + 1)), unpack(params)))
        change, state = rule.update(gradient, state, params)
        params = moved(params, change)
    evaluated = rule.evaluated(state, params) if getattr(rule, "evaluated", None) else params
    return unpack(params), unpack(evaluated)


def moved(params, change) -> Any:
    return optax.apply_updates(params, change)


def close(first, second, rtol=1e-9):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12), first, second)


# Each optimiser with options of its own, and what optax makes of them.
BY_HAND = {
    "adam": ({"b1": 0.8, "eps": 1e-3}, lambda: optax.adam(RATE, 0.8, 0.999, 1e-3)),
    "adamw": (
        {"b2": 0.99, "weight_decay": 0.3},
        lambda: optax.adamw(RATE, 0.9, 0.99, weight_decay=0.3, mask=KERNELS),
    ),
    "adamax": ({"b1": 0.7}, lambda: optax.adamax(RATE, 0.7)),
    "sgd": (
        {"momentum": 0.7, "nesterov": True, "weight_decay": 0.2},
        lambda: optax.chain(
            optax.trace(0.7, True), optax.add_decayed_weights(0.2, KERNELS), optax.scale_by_learning_rate(RATE)
        ),
    ),
    "rmsprop": (
        {"decay": 0.8, "centered": True, "momentum": 0.5},
        lambda: optax.rmsprop(RATE, 0.8, centered=True, momentum=0.5),
    ),
    "lion": ({"b1": 0.8, "weight_decay": 0.2}, lambda: optax.lion(RATE, 0.8, 0.99, weight_decay=0.2, mask=KERNELS)),
    "muon": (
        {"beta": 0.9, "ns_steps": 3, "weight_decay": 0.2},
        lambda: optax.contrib.muon(
            RATE,
            ns_steps=3,
            beta=0.9,
            weight_decay=0.2,
            muon_weight_dimension_numbers={
                "layer": {"kernel": optax.contrib.MuonDimensionNumbers(0, 1), "bias": None},
                "convolution": {"kernel": optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)},
                "prior": {"mu": None},
            },
        ),
    ),
    "schedule_free": ({"b1": 0.8, "b2": 0.99}, lambda: optax.contrib.schedule_free_adamw(RATE, b1=0.8, b2=0.99)),
}
OPTIONS = {name: {f"optimizer.{option}": value for option, value in own.items()} for name, (own, _) in BY_HAND.items()}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_values_are_those_of_optax_used_by_hand(name):
    close(trained(built(name, **OPTIONS[name]))[0], trained(BY_HAND[name][1]())[0])


@pytest.mark.usefixtures("float64")
def test_schedule_free_evaluates_the_average_of_its_points():
    rule = optax.contrib.schedule_free_adamw(RATE, b1=0.8)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = rule.init(params)
    points = []
    for i in range(3):
        change, state = rule.update(jax.tree.map(lambda leaf, i=i: jnp.sin(leaf * (i + 1)), params), state, params)
        params = moved(params, change)
        points.append(cast(Any, state).z)
    _, evaluated = trained(built("schedule_free", **{"optimizer.b1": 0.8}), steps=3)
    close(evaluated, jax.tree.map(lambda *leaves: sum(leaves) / 3, *points))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "muon", "schedule_free"])
def test_decay_moves_kernels_only(name):
    params, _ = trained(built(name, **{"optimizer.weight_decay": 0.5}), factor=0.0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        before = PARAMS[path[0].key][path[1].key]
        if path[-1].key == "kernel":
            assert (np.abs(leaf) < np.abs(before)).all()
        else:
            np.testing.assert_allclose(leaf, before, rtol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("around", [{}, {"train.gradient_clip": 0.5, "train.ema_decay": 0.9, "train.accumulate": 2}])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if built(name).elementwise])
def test_parameters_may_be_one_vector(name, around):
    rule = built(name, **OPTIONS[name], **around)
    assert rule.elementwise
    close(trained(rule), trained(rule, packing=pack), 1e-12)


def test_muon_keeps_its_trees():
    assert [name for name in OPTIMIZERS if not built(name).elementwise] == ["muon"]


@pytest.mark.usefixtures("float64")
def test_averages_by_hand():
    rule = built("sgd", **{"optimizer.momentum": 0.0, "train.ema_decay": 0.2})
    params = jnp.asarray(2.0)
    state, average = rule.init(params), 2.0
    for t in (1, 2, 3):
        change, state = rule.update(jnp.asarray(1.0), state, params)
        params = moved(params, change)
        d = min(0.2, (1 + t) / (10 + t))  # 2/11, then 0.2
        average = d * average + (1 - d) * (2 - RATE * t)
        assert float(rule.evaluated(state, params)) == pytest.approx(average, rel=1e-12)
        assert float(params) == pytest.approx(2 - RATE * t)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_two_batches_train_as_one_of_twice_the_size(small_data, reduction):
    """Of an update's loss that does not draw: the gradients of the halves of a batch are those of the whole."""
    changes = {"objective.name": "autoencoder", "train.reduction": reduction, "train.gradient_clip": 0.1}
    changes |= {"train.learning_rate": 1e-2, "optimizer.name": "adam", "optimizer.eps": 1e-3}
    images = jnp.asarray(small_data.train.images[:32])
    ended = []
    for batches in (1, 2):
        config = with_options(PLAIN, **changes, **{"train.accumulate": batches})
        network, objective = build(config, small_data.image_shape)
        rule = optimizer.build(config, 4)
        step = jax.jit(make_step(config, network, objective, rule))
        variables = network.init(jax.random.key(0))
        state = rule.init(variables.params)
        for number in range(2):
            for part in jnp.split(images, batches):
                variables, state, _ = step(variables, state, part, jax.random.key(number))
        ended.append(variables.params)
    close(*ended)


def test_an_update_has_the_learning_rate_of_its_last_batch():
    rule = built("sgd", **{"optimizer.momentum": 0.0, "train.accumulate": 2, "train.warmup_steps": 10})
    params = jnp.asarray(0.0)
    state, changes = rule.init(params), []
    for _ in range(6):
        change, state = rule.update(jnp.asarray(1.0), state, params)
        changes.append(-float(change))
    np.testing.assert_allclose(changes, [0, 2 * 0.01, 0, 2 * 0.03, 0, 2 * 0.05], rtol=1e-6)


AROUND = {"train.ema_decay": 0.9, "train.accumulate": 3, "train.gradient_clip": 10.0}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", [*OPTIMIZERS, "all around"])
def test_runs_resume_bit_for_bit_and_members_are_their_single_runs(small_data, name):
    more = AROUND if name == "all around" else {}
    name = "schedule_free" if name == "all around" else name
    configs = [
        with_options(PLAIN, **{"optimizer.name": name, "train.learning_rate": rate}, **more) for rate in (1e-4, 1e-3)
    ]
    alone = [fit(config, small_data) for config in configs]
    assert alone[1].history[1]["train_loss"] < alone[1].history[0]["train_loss"]
    begun = fit(replace(configs[0], train=replace(configs[0].train, epochs=1)), small_data)
    resumed = fit(configs[0], small_data, resume=(begun.state, begun.history))
    jax.tree.map(np.testing.assert_array_equal, resumed.state, alone[0].state)
    program = several.program_that_fits(configs, several.Images(small_data))
    together: Any = several.fit(program, [several.Run(config) for config in configs])
    for (state, _), single in zip(together, alone, strict=True):
        close(state, single.state)


def test_what_is_no_option_of_an_optimiser_is_refused():
    with pytest.raises(UserError, match=r"optimizer\.weight_decay: expected optimizer\.name adamw or sgd .*found adam"):
        built("adam", **{"optimizer.weight_decay": 0.1})
    with pytest.raises(UserError, match=r"train\.ema_decay: expected a number in \[0, 1\); found 1"):
        built("adam", **{"train.ema_decay": 1.0})
