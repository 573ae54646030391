"""Random keys: one purpose each, and those of training as they have always been."""

import ast
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vae_jax
from vae_jax import keys, optimizer
from vae_jax.config import Config, ModelConfig, PosteriorConfig, PriorConfig
from vae_jax.data import Split
from vae_jax.evaluation import latents
from vae_jax.evaluation.diagnostics import diagnose
from vae_jax.evaluation.evaluator import make_terms
from vae_jax.model.build import build
from vae_jax.model.model import make_model
from vae_jax.objectives import Objective
from vae_jax.training.step import make_step

CONFIG = Config(model=ModelConfig(network="mlp", latent=2, layers=(4,)))
SHAPE = (2, 2, 1)
IMAGES = np.zeros((5, *SHAPE), np.uint8)
CHILDREN = 8


def words(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def purposes(seed):
    """Of a run: the keys that are kept, and those that somebody is handed, with the purpose of each."""
    run = keys.make_keys(seed)
    handed = {
        "init": run.init,
        "own network": keys.own_network_key(run.init),
        "objective": keys.objective_key(run.init),
        "samplers": run.samplers,
        "sample --seed": keys.sampling_key(jax.random.key(seed)),
        "samples": keys.sampling_key(run.samples),
    }
    diagnostics = keys.diagnostics_key(run.evaluate)
    for i in range(3):
        handed |= {f"part {i}": keys.part_key(run.init, i), f"epoch {i}": keys.epoch_key(run.shuffle, i)}
        step = keys.step_keys(keys.step_key(run.steps, i))
        handed |= {f"step {i}: {name}": key for name, key in step._asdict().items()}
        for phase in (1, 2):
            of_phase = keys.step_keys(keys.phase_key(keys.step_key(run.steps, i), phase))
            handed |= {f"step {i}, phase {phase}: {name}": key for name, key in of_phase._asdict().items()}
        for name, key in (
            ("evaluation", run.evaluate),
            ("diagnostics", diagnostics),
            ("training images", keys.training_images_key(diagnostics)),
            ("evaluation, phase 1", keys.further_key(run.evaluate, 1)),
        ):
            handed |= dict(zip((f"{name} {i}", f"{name} {i}: treatment"), keys.batch_keys(key, i), strict=True))
        image = keys.image_keys(keys.estimates_key(run.evaluate), i)
        handed[f"image {i}: treatment"] = image.treatment
        for j in range(3):
            handed[f"image {i}: sample {j}"] = keys.sample_key(image.importance, j)
        for name, chains in (("pilots", image.pilots), ("chains", image.chains)):
            handed[f"image {i}: first z of {name}"] = keys.first_z_key(chains)
            handed |= {f"image {i}: move {j} of {name}": keys.move_key(chains, j) for j in (1, 2)}
    kept = {f"run: {name}": key for name, key in run._asdict().items() if name not in ("init", "samplers")}
    return kept, handed


def test_no_two_purposes_share_a_key_nor_a_child_of_one():
    owners = {}

    def own(key, *name):
        for data in np.asarray(jax.random.key_data(key)).reshape(-1, 2).tolist():
            assert tuple(data) not in owners, (name, owners[tuple(data)])
            owners[tuple(data)] = name

    everybodys = {f"encode {i}": keys.encoding_key(i) for i in range(3)}
    everybodys |= keys.step_keys(keys.probing_key())._asdict()
    for seed in (0, 1, 2**32 - 1):
        kept, handed = purposes(seed)
        for name, key in kept.items():
            own(key, seed, name)
        for name, key in (handed if seed else handed | everybodys).items():
            own(key, seed, name)
            own(jax.random.split(key, CHILDREN), seed, name, "children")
    assert len(owners) > 3 * (1 + CHILDREN) * 60


def test_a_child_by_number_is_the_one_of_a_split():
    """What the rule for siblings rests on."""
    key = jax.random.key(3)
    assert [words(jax.random.fold_in(key, i)) for i in range(5)] == [words(child) for child in jax.random.split(key, 5)]


def test_the_keys_of_training_stay_as_they_are():
    """Every published figure rests on them."""
    run = keys.make_keys(0)
    step, next_step = (keys.step_keys(keys.step_key(run.steps, number)) for number in (0, 1))
    found = {
        "init": run.init,
        "shuffle": run.shuffle,
        "steps": run.steps,
        "evaluate": run.evaluate,
        "samples": run.samples,
        "epoch 2": keys.epoch_key(run.shuffle, 2),
        "objective 0": step.objective,
        "dropout 0": step.dropout,
        "treatment 0": step.treatment,
        "objective 1": next_step.objective,
        "dropout 1": next_step.dropout,
        "evaluation 2": keys.batch_keys(run.evaluate, 2)[0],
        "estimates": keys.estimates_key(run.evaluate),
        "sample 3 of image 4": keys.sample_key(keys.image_keys(keys.estimates_key(run.evaluate), 4).importance, 3),
        "init of seed 7": keys.make_keys(7).init,
    }
    assert {name: words(key) for name, key in found.items()} == {
        "init": (1797259609, 2579123966),
        "shuffle": (928981903, 3453687069),
        "steps": (4146024105, 2718843009),
        "evaluate": (2467461003, 3840466878),
        "samples": (2285895361, 433833334),
        "epoch 2": (3152301319, 792466127),
        "objective 0": (3879954003, 4142096212),
        "dropout 0": (576043609, 327779266),
        "treatment 0": (2564359495, 2803920705),
        "objective 1": (2466833249, 770554386),
        "dropout 1": (1614726105, 946472567),
        "evaluation 2": (4200119405, 243240744),
        "estimates": (2188188817, 2010363843),
        "sample 3 of image 4": (3823014168, 2022270086),
        "init of seed 7": (3625411723, 1954958720),
    }


def test_numbers_of_keys_stand_in_one_file():
    """No other file makes a key, or a child of one, from a number of its own."""
    found = []
    for path in Path(vae_jax.__file__).parent.rglob("*.py"):
        if path.name == "keys.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if call.endswith(("random.key", "random.PRNGKey", "random.fold_in")) and any(
                isinstance(argument, ast.Constant | ast.BinOp) for argument in node.args
            ):
                found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert not found


# --- Who is handed what -----------------------------------------------------------------------------------------------


def shown(key):
    """A key's four halves of 16 bits as an image, which float32 holds exactly."""
    data = jax.random.key_data(key)
    return jnp.stack([data >> 16, data & 0xFFFF]).astype(float).reshape(SHAPE)


def watched(terms):
    """A model whose images are the key of their treatment, and an objective with these terms."""
    network, _ = build(CONFIG, SHAPE)
    treat = lambda key, images: jnp.broadcast_to(shown(key), images.shape)  # noqa: E731
    return network._replace(treat=treat), Objective(terms)


def meets_own_key(key, model, images, options):
    """An objective whose loss is 1 where the images were treated with a key that it may derive from its own."""
    own = jnp.stack([shown(key), *(shown(child) for child in jax.random.split(key, CHILDREN))])
    same = (own == images[:1]).all((1, 2, 3)).any()
    return {"loss": jnp.broadcast_to(same.astype(float), len(images))}


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_an_objective_may_derive_what_it_likes_from_its_key(where):
    network, objective = watched(meets_own_key)
    variables = network.init(keys.make_keys(0).init)
    if where == "evaluation":
        loss = make_terms(CONFIG, network, objective)(
            variables, jnp.asarray(IMAGES), None, jnp.int32(0), keys.make_keys(0).evaluate
        )["loss"]
    else:
        transformation = optimizer.build(CONFIG, 1)
        step = make_step(CONFIG, network, objective, transformation)
        loss = jax.jit(step)(variables, transformation.init(variables.params), jnp.asarray(IMAGES), jax.random.key(5))[
            2
        ]
    assert not np.asarray(loss).any()


def test_drawing_with_the_runs_own_seed_meets_none_of_the_runs_keys():
    network, objective = build(CONFIG, SHAPE)
    variables, seen = network.init(keys.make_keys(3).init), []

    def sample_prior(variables, key, count):
        seen.append(key)
        return network.sample_prior(variables, key, count)

    model = make_model(network._replace(sample_prior=sample_prior), objective, variables)
    model.sample(jax.random.key(3), 2)
    kept, handed = purposes(3)
    assert [words(key) for key in seen] == [words(handed.pop("sample --seed"))]
    assert words(seen[0]) not in {words(key) for key in (kept | handed).values()}


def test_each_part_starts_from_a_key_of_its_own():
    config = Config(model=CONFIG.model, prior=PriorConfig("mixture", components=3))
    network, _ = build(config, SHAPE)
    key = keys.make_keys(0).init
    expected = 0.5**0.5 * jax.random.normal(keys.part_key(key, 1), (3, 2))
    np.testing.assert_allclose(network.init(key).params["prior"]["mu"], expected, rtol=1e-6)


def test_diagnostics_draw_other_noise_for_the_training_images(monkeypatch):
    network, _ = build(replace(CONFIG, posterior=PosteriorConfig("planar")), SHAPE)  # no density to look at
    variables, seen = network.init(keys.make_keys(0).init), []
    make_posteriors = latents.make_posteriors

    def watching(network, variables):
        posteriors = make_posteriors(network, variables)

        def watched(key, *rest):
            seen.append(words(key))
            assert len(seen) < 2, "seen enough"
            return posteriors(key, *rest)

        return watched

    monkeypatch.setattr("vae_jax.evaluation.diagnostics.make_posteriors", watching)
    split = Split(IMAGES, np.arange(5) % 2)
    with pytest.raises(AssertionError, match="seen enough"):
        diagnose(CONFIG, network, variables, split, jax.random.key(0), train=split, report=lambda line: None)
    assert len(set(seen)) == 2
