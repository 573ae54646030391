"""Sweeps: members are their single runs, one that diverges harms no other, memory splits them, a stop goes on."""

import csv
import json
import math
import re
import shutil
import time
from dataclasses import replace

import jax
import numpy as np
import pytest
from run_fixtures import TINY, compiled_once, flags, snapshot

from vae_jax import data
from vae_jax.cli import main
from vae_jax.cli import sweep as cli_sweep
from vae_jax.config import PARTS as SECTIONS
from vae_jax.config import Config, ModelConfig, ObjectiveConfig, OptimizerConfig, TrainConfig, load_config, with_values
from vae_jax.config.parts import registry_of
from vae_jax.config.section import options_class
from vae_jax.device import memory
from vae_jax.errors import Diverged, Stopped, UserError
from vae_jax.options import TRACED, options_in
from vae_jax.runs.fit import fit
from vae_jax.runs.reading import load
from vae_jax.runs.recorder import Recorder
from vae_jax.runs.train import train as train_run
from vae_jax.sweeps.plan import _labels, check_sweep_folder, make_sweep, members_of, read_sweep, specification
from vae_jax.sweeps.ranking import Outcome
from vae_jax.sweeps.results import write_results
from vae_jax.sweeps.sweep import Group, run
from vae_jax.training import several

PLAIN = Config(model=ModelConfig(network="mlp", layers=(5,), latent=3), train=TrainConfig(epochs=2, batch_size=16))
# The same through folders and commands.
SMALL = {name: value for name, value in TINY.items() if name not in ("model.channels", "model.hidden")}
SMALL |= {"model.network": "mlp", "model.layers": [5]}
PARTS = ("loss", "reconstruction", "kl")


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    with compiled_once(tmp_path_factory.getbasetemp() / "compiled"):
        yield


def figures(history):
    return [
        [epoch[f"{split}_{part}"] for split in ("train", "test", "validation") for part in PARTS] for epoch in history
    ]


def check_members_are_single_runs(configs, small_data):
    program = several.program_that_fits(configs, several.Images(small_data))
    assert program.size == len(configs)
    found = several.fit(program, [several.Run(config) for config in configs])
    for config, (state, history) in zip(configs, found, strict=True):
        alone = fit(config, small_data)
        np.testing.assert_allclose(figures(history), figures(alone.history), rtol=1e-9)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), state, alone.state)
    assert len({epoch[-1]["train_loss"] for _, epoch in found}) == len(configs)  # they differ


# Every option that is compiled once for all its values, with two that make a difference, by the objective they need.
OPTIONS = {
    "warmup": (
        {"schedule": "warmup"},
        {
            "train.learning_rate": (1e-3, 1e-2),
            "optimizer.eps": (1e-8, 1e-2),
            "optimizer.weight_decay": (0.01, 1.0),
            "objective.beta": (1.0, 4.0),
            "objective.warmup_epochs": (1.0, 5.0),
        },
    ),
    "cyclical": ({"schedule": "cyclical"}, {"objective.cycle_epochs": (1.0, 5.0), "objective.cycle_ratio": (0.2, 1.0)}),
    "capacity_vae": (
        {"name": "capacity_vae"},
        {
            "objective.capacity": (5.0, 25.0),
            "objective.capacity_epochs": (1.0, 5.0),
            "objective.capacity_weight": (1.0, 5.0),
        },
    ),
    "ciwae": ({"name": "ciwae"}, {"objective.elbo_weight": (0.2, 0.8)}),
    "denoising": ({"name": "denoising_autoencoder"}, {"objective.corruption_level": (0.1, 0.5)}),
}


def test_every_option_that_is_traced_is_tested():
    known = {f"train.{name}": option for name, option in options_in(TrainConfig).items()}
    for section in SECTIONS:
        for part in registry_of(section):
            options = options_in(options_class(section, part))
            known |= {f"{section}.{name}": option for name, option in options.items()}
    traced = {name for name, option in known.items() if TRACED in option.marks}
    assert {option for _, values in OPTIONS.values() for option in values} == traced


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", OPTIONS)
def test_members_are_their_single_runs(small_data, case):
    objective, values = OPTIONS[case]
    base = replace(PLAIN, objective=ObjectiveConfig(**objective), train=replace(PLAIN.train, epochs=1))
    base = replace(base, optimizer=OptimizerConfig(name="adamw"))  # it has every option that is traced
    configs = [with_values(base, {name: pair[number] for name, pair in values.items()}) for number in (0, 1)]
    # One member for each option that differs from the first in it alone, and one in all.
    alone = [
        with_values(base, {name: pair[0] for name, pair in values.items()} | {each: values[each][1]}) for each in values
    ]
    check_members_are_single_runs(configs, small_data)
    history = several.fit(
        several.program_that_fits(alone, several.Images(small_data)),
        [several.Run(each) for each in alone],
    )
    first = fit(configs[0], small_data).history[0]["train_loss"]
    assert all(abs(found[-1]["train_loss"] - first) > 1e-6 for _, found in history)  # each option does something


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mapping", ["in turn", "side by side"])
def test_seeds_and_schedules_of_the_articles_network(small_data, mapping, monkeypatch):
    if mapping == "side by side":  # as on an accelerator
        monkeypatch.setattr(several, "_over_members", jax.vmap)
    base = Config(model=ModelConfig(channels=(4, 6), latent=3), train=TrainConfig(epochs=2, batch_size=16))
    base = replace(base, train=replace(base.train, schedule="cosine", warmup_steps=3))
    configs = [with_values(base, {"seed": seed, "train.learning_rate": rate}) for seed, rate in ((0, 1e-3), (7, 5e-3))]
    check_members_are_single_runs(configs, small_data)


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("objective", "values"),
    [
        ("vae", {"seed": (0, 1), "objective.beta": (1.0, 2.0)}),
        # A constant 3 or 7 would be divided by as its reciprocal is multiplied with, which rounds otherwise.
        ("capacity_vae", {"objective.capacity_epochs": (3.0, 7.0), "optimizer.eps": (1e-8, 1e-3)}),
    ],
)
def test_a_member_is_its_single_run_bit_for_bit_on_a_cpu(small_data, objective, values):
    base = replace(PLAIN, objective=ObjectiveConfig(name=objective))
    configs = [with_values(base, {name: pair[number] for name, pair in values.items()}) for number in (0, 1)]
    found = several.fit(
        several.program_that_fits(configs, several.Images(small_data)),
        [several.Run(config) for config in configs],
    )
    for config, (state, history) in zip(configs, found, strict=True):
        alone = fit(config, small_data)
        assert figures(history) == figures(alone.history)
        jax.tree.map(np.testing.assert_array_equal, state, alone.state)


def test_a_member_that_diverges_is_frozen_and_harms_no_other(small_data):
    rates = (1e-3, 1e30, 1e-2)
    configs = [with_values(PLAIN, {"train.learning_rate": rate}) for rate in rates]
    seen = []
    program = several.program_that_fits(configs, several.Images(small_data))
    found = several.fit(
        program,
        [several.Run(config) for config in configs],
        on_epoch=lambda number, epoch, state: seen.append((number, epoch["epoch"])),
    )
    assert isinstance(found[1], Diverged)
    assert "diverged in epoch 1" in str(found[1])
    assert seen == [(0, 1), (2, 1), (0, 2), (2, 2)]
    for number in (0, 2):
        alone = fit(configs[number], small_data)
        assert figures(found[number][1]) == figures(alone.history)


def test_members_are_split_where_the_memory_does_not_hold_them(small_data, monkeypatch):
    configs = [with_values(PLAIN, {"seed": seed}) for seed in range(5)]
    one, whole = (several.Several(configs, several.Images(small_data), size) for size in (1, 5))
    monkeypatch.setattr(memory, "available", lambda: int((one.needs + whole.needs) / 2 / several.SHARE))
    program = several.program_that_fits(configs, several.Images(small_data))
    assert 1 <= program.size < 5
    few = several.fit(program, [several.Run(configs[4])])  # the rest of the program stays empty
    assert len(few) == 1
    assert figures(few[0][1]) == figures(fit(configs[4], small_data).history)
    monkeypatch.setattr(memory, "available", lambda: 10)
    with pytest.raises(UserError, match=r"train\.batch_size 16: training one member needs .* MB are free"):
        several.program_that_fits(configs, several.Images(small_data))


def test_members_are_split_where_the_compiler_finds_no_room_or_too_few_files_may_be_open(small_data, monkeypatch):
    class Full(several.Several):
        """Three members at a time fit."""

        def __init__(self, configs, images, size):
            if size > 3:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
            self.size, self.needs = size, 1

    monkeypatch.setattr(several, "Several", Full)
    configs, images = [with_values(PLAIN, {"seed": seed}) for seed in range(7)], several.Images(small_data)
    assert several.program_that_fits(configs, images).size == 3  # half of 7
    monkeypatch.setattr(several, "MOST", 2)
    assert several.program_that_fits(configs[:3], images).size == 2
    monkeypatch.setattr(Full, "__init__", lambda *_: (_ for _ in ()).throw(jax.errors.JaxRuntimeError("broken")))
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        several.program_that_fits(configs, images)


def test_the_memory_of_shuffling_is_counted():
    """Of many small images it is most of what a program needs."""
    levels = np.zeros((50_000, 1, 1, 1), np.uint8)
    many = data.Dataset("many", data.Split(levels), data.Split(levels[:2]))
    program = several.Several([PLAIN], several.Images(many), 1)
    used = program.shuffle.memory_analysis()
    assert program.needs > used.temp_size_in_bytes + used.output_size_in_bytes + levels.nbytes * 4  # and its order


def test_images_are_there_once_for_all_programs(small_data):
    images = several.Images(small_data)
    labelled = replace(PLAIN, model=replace(PLAIN.model, classes=10))
    assert images.of("train", PLAIN)[0] is images.of("train", labelled)[0]
    assert images.of("train", PLAIN)[1] is None
    np.testing.assert_array_equal(images.of("test", labelled)[1], small_data.test.labels)


def test_streamed_data_are_refused(small_data):
    with pytest.raises(UserError, match=r"train\.shard_images: expected 0 .*members share them; found 32"):
        several.program_that_fits(
            [replace(PLAIN, train=replace(PLAIN.train, shard_images=32))], several.Images(small_data)
        )


# --- Folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base():
    return load_config(**SMALL)


@pytest.fixture(scope="module")
def images(base):
    return data.load(base.data)


@pytest.fixture(scope="module")
def whole(base, images, tmp_path_factory):
    """A sweep of 2 seeds, 2 values of β and 2 latent sizes, and what became of it."""
    folder = tmp_path_factory.mktemp("sweep") / "whole"
    plan = make_sweep(base, 2, ["objective.beta=0.5,2", "model.latent=2,3"])
    seen = []
    return folder, plan, run(plan, images, folder, on_progress=seen.append), seen


def test_each_member_is_a_normal_run(whole, images, base):
    folder, _, outcomes, seen = whole
    assert len(outcomes) == 8
    assert [group.members for group in seen[-1]] == [4, 4]  # compiled twice
    assert seen[-1][-1].done == 1
    for outcome in outcomes:
        path = folder / outcome.member.name
        trained = load(path)
        assert trained.config == outcome.member.config
        assert {each.name for each in path.iterdir()} >= {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints"}
        assert (path / "figures" / "latent_plane.png").exists() == (trained.config.model.latent == 2)
    name = "beta=2,latent=2,seed=1"
    alone = fit(load(folder / name).config, images)
    assert figures(load(folder / name).history) == figures(alone.history)
    # It goes on like one that was trained alone, and the sweep keeps what it was.
    longer = replace(alone.config, train=replace(alone.config.train, epochs=3))
    assert len(train_run(longer, images, folder / name, resume=True).history) == 3
    again = run(whole[1], images, folder, resume=True)
    assert [figures(each.history) for each in again] == [figures(each.history) for each in outcomes]


def test_tables_and_figures(whole):
    folder, _, outcomes, _ = whole
    rows = list(csv.DictReader((folder / "members.csv").read_text().splitlines()))
    assert [row["folder"] for row in rows] == [outcome.member.name for outcome in outcomes]
    table = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [(row["objective.beta"], row["model.latent"]) for row in table] == [
        ("0.5", "2"), ("0.5", "3"), ("2", "2"), ("2", "3")
    ]  # fmt: skip
    for row in rows:
        elbo = float(row["validation_reconstruction"]) + float(row["validation_kl"])
        assert float(row["ranked_by"]) == pytest.approx(elbo)
    for row in table:
        own = [
            float(each["validation_loss"])
            for each in rows
            if (each["objective.beta"], each["model.latent"]) == (row["objective.beta"], row["model.latent"])
        ]
        assert float(row["validation_loss"]) == pytest.approx(np.mean(own))
        assert float(row["validation_loss_std"]) == pytest.approx(np.std(own, ddof=1))
        elbo = float(row["validation_reconstruction"]) + float(row["validation_kl"])
        assert float(row["validation_negative_elbo"]) == pytest.approx(elbo)
    lines = (folder / "table.md").read_text().splitlines()
    # β changes what a loss is, so settings are ranked by −ELBO.
    best = min(range(4), key=lambda number: float(table[number]["validation_negative_elbo"]))
    assert ["**" in line for line in lines[2:6]] == [number == best for number in range(4)]
    assert lines[6:] == ["", "Figures are nats per image, cross-entropies of grey levels."]
    assert {path.name for path in (folder / "figures").iterdir()} == {"curves.png", "grid.png"}


def test_a_stopped_sweep_goes_on_to_the_same_end(images, tmp_path):
    base = load_config(**TINY)  # which has BatchNorm's statistics to go on with
    plan = make_sweep(base, 2, ["objective.beta=0.5,2"])
    expected = run(plan, images, tmp_path / "whole")
    asked = []

    def stop():
        asked.append(1)
        return len(asked) == 4  # inside the first epoch's second call or after it

    with pytest.raises(Stopped):
        run(plan, images, tmp_path / "stopped", should_stop=stop)
    with pytest.raises(UserError, match="there is a sweep already"):
        run(plan, images, tmp_path / "stopped")
    found = run(plan, images, tmp_path / "stopped", resume=True)
    for now, then in zip(found, expected, strict=True):
        assert figures(now.history) == figures(then.history)
    again = run(plan, images, tmp_path / "stopped", resume=True)  # nothing is left to do
    assert [figures(each.history) for each in again] == [figures(each.history) for each in found]
    other = make_sweep(base, 3, ["objective.beta=0.5,2"])
    with pytest.raises(UserError, match=r"continues a sweep as it began; changed: seeds \(the sweep has 2, found 3\)"):
        run(other, images, tmp_path / "stopped", resume=True)


def test_members_killed_at_different_steps_go_on(base, images, tmp_path, monkeypatch):
    plan = make_sweep(base, 3, [])
    expected = run(plan, images, tmp_path / "whole")
    record = Recorder.epoch

    def die(self, epoch, state):
        if (epoch["epoch"], self.folder.name) == (2, "seed=1"):
            raise KeyboardInterrupt
        record(self, epoch, state)

    monkeypatch.setattr(Recorder, "epoch", die)
    with pytest.raises(KeyboardInterrupt):
        run(plan, images, tmp_path / "killed")
    monkeypatch.undo()
    assert [len(load(tmp_path / "killed" / f"seed={seed}").history) for seed in range(3)] == [2, 1, 1]
    found = run(plan, images, tmp_path / "killed", resume=True)
    for now, then in zip(found, expected, strict=True):
        assert figures(now.history) == figures(then.history)


def test_a_diverging_member_is_said_and_the_table_counts_it(base, images, tmp_path, monkeypatch):
    monkeypatch.setattr(several, "is_slow_in_loops", lambda lowered: True)  # as with a user's nn.Conv
    plan = make_sweep(base, 1, ["train.learning_rate=1e-3,1e30"])
    said, seen = [], []
    found = run(plan, images, tmp_path / "sweep", report=said.append, on_progress=lambda groups: seen.append(groups[0]))
    assert any(group.diverged and group.epoch == 1 for group in seen)  # reported when it happens
    assert [bool(each.failure) for each in found] == [False, True]
    assert said[0] == "group 1/1: compiling 2 members as one program"
    assert re.fullmatch(r"group 1/1: compiled in \d+\.\d s", said[1])
    assert said.pop(2).startswith("group 1/1: the convolutions of mlp are XLA's own, several times slower")
    assert len(said) == 3
    assert said[2].startswith("learning_rate=1e+30,seed=0: training diverged in epoch 1")
    note = tmp_path / "sweep" / "learning_rate=1e+30,seed=0" / "diverged.txt"
    assert note.read_text().strip() in said[2]
    before = note.stat().st_mtime_ns
    again = run(plan, images, tmp_path / "sweep", resume=True)  # it is not trained again to the same end
    assert [each.failure for each in again] == [each.failure for each in found]
    assert note.stat().st_mtime_ns == before
    assert "| 1e+30 | 1 | – | – | – | – | 1 |" in (tmp_path / "sweep" / "table.md").read_text()


def test_members_that_do_not_fit_while_they_train_go_on_fewer_at_once(base, images, tmp_path, monkeypatch):
    plan = make_sweep(base, 2, [])
    train_ = several.Several.train
    calls, said = [], []

    def train(program, *arguments):
        calls.append(program.size)
        if program.size == 2 and len(calls) == 4:  # after the first epoch's three calls
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return train_(program, *arguments)

    monkeypatch.setattr(several.Several, "train", train)
    found = run(plan, images, tmp_path / "sweep", report=said.append)
    assert calls == [2, 2, 2, 2] + [1, 1, 1] * 2  # from the second epoch on
    assert "group 1/1: training 2 members does not fit into memory; going on with 1 at once" in said
    assert any(re.fullmatch(r"group 1/1: compiled in \d+\.\d s, for 1 at once, in 2 turns", line) for line in said)
    for outcome in found:
        assert figures(outcome.history) == figures(train_alone(outcome.member.config, images))
        assert figures(load(tmp_path / "sweep" / outcome.member.name).history) == figures(outcome.history)
    monkeypatch.setattr(
        several.Several, "train", lambda *_: (_ for _ in ()).throw(jax.errors.JaxRuntimeError("broken"))
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        run(plan, images, tmp_path / "sweep", overwrite=True)


def train_alone(config, images):
    return fit(config, images).history


# --- What does not compare -------------------------------------------------------------------------------------------

OWN = """
from vae_jax.likelihoods import LIKELIHOODS
from vae_jax.likelihoods.gaussian import GaussianOptions
from vae_jax.objectives import OBJECTIVES, Objective
def bits(*arguments): return None
in_bits = Objective(bits, "bits per image")
def likelihood(options: GaussianOptions, shapes): return LIKELIHOODS["gaussian"](options, shapes)._replace(measure="")
"""
GREY, SQUARED = "nats per image, cross-entropies of grey levels", "squared error per image, grey levels"
# What is swept, and the kind of each setting's figures; of settings of a kind the last one is made the best.
KINDS = {
    ("objective.name=vae,autoencoder",): [GREY, SQUARED],
    ("objective.name=vae,iwae,autoencoder,denoising_autoencoder",): [GREY, GREY, SQUARED, SQUARED],
    ("objective.name=vae,OWN:bits,OWN:in_bits",): [GREY, GREY, GREY.replace("nats", "bits")],
    ("objective.name=autoencoder,denoising_autoencoder",): [SQUARED, SQUARED],
    ("likelihood.name=bernoulli,gaussian,continuous_bernoulli,discretized_logistic,OWN:likelihood",): [
        GREY,
        *["nats per image, densities of grey levels"] * 2,
        "nats per image, probabilities of grey levels",
        "nats per image, values of likelihood OWN:likelihood of grey levels",
    ],
    ("data.treatment=static,grey,dynamic",): [
        "nats per image, probabilities of statically binarised pixels",
        GREY,
        "nats per image, probabilities of dynamically binarised pixels",
    ],
    ("likelihood.name=gaussian,continuous_bernoulli", "data.treatment=grey,dequantized"): [
        f"nats per image, densities of {kind}" for kind in ("grey levels", "dequantised grey levels")
    ]
    * 2,
    ("objective.beta=1,2,3",): [GREY] * 3,
}


def test_tables_have_every_figure_of_an_objective(base, images, tmp_path):
    plan = make_sweep(base, 2, [])
    own = ["critic_loss", "critic_seconds", "x_kl"]
    epoch = {
        f"{split}_{part}": 2.0 for split in ("train", "test", "validation") for part in ("loss", "reconstruction", *own)
    }
    outcomes = [Outcome(member, [epoch | {"train_seconds": 1.0}]) for member in members_of(plan)]
    write_results(tmp_path, plan, outcomes, images)
    titles = (tmp_path / "table.md").read_text().splitlines()[0].strip("| ").split(" | ")
    parts = ["loss", "reconstruction", "KL", "−ELBO", *own]
    assert titles == ["seeds", *(f"validation {part}" for part in parts), "diverged"]
    (row,) = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    assert {row[f"validation_{part}"] for part in own} == {"2.0"}
    for member in csv.DictReader((tmp_path / "members.csv").read_text().splitlines()):
        assert {name for name in member if name.startswith("train_")} == {name for name in epoch if "train_" in name}


@pytest.mark.parametrize("settings", KINDS, ids="; ".join)
def test_what_does_not_compare_is_not_ranked_against_each_other(settings, base, images, tmp_path, monkeypatch):
    drawn = {}

    def draw(path, shown, values, *more):
        drawn[path.name] = (shown, values, *more)

    monkeypatch.setattr("vae_jax.sweeps.results.sweep_curves", draw)
    monkeypatch.setattr("vae_jax.sweeps.results.sweep_grid", draw)
    own = tmp_path / "own.py"
    own.write_text(OWN)
    plan = make_sweep(base, 2, [setting.replace("OWN", str(own)) for setting in settings])
    made, kinds = members_of(plan), [kind.replace("OWN", str(own)) for kind in KINDS[settings]]
    rows = list(range(len(kinds)))
    outcomes = []
    for number, member in enumerate(made):
        loss = 100.0 - number // 2  # of two seeds
        parts = {"loss": loss, "reconstruction": loss, "kl": 0.5}
        outcomes.append(Outcome(member, [{f"validation_{part}": value for part, value in parts.items()}]))
    write_results(tmp_path, plan, outcomes, images)
    table = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [f"{row['unit']}, {row['measure']}" for row in table] == kinds
    rivals = {kind: [row for row in rows if kinds[row] == kind] for kind in kinds}
    lines = (tmp_path / "table.md").read_text().splitlines()
    best = [several[-1] for several in rivals.values() if len(several) > 1]
    assert [row for row, line in enumerate(lines[2 : 2 + len(rows)]) if "**" in line] == sorted(best)
    assert all((kind in line) == (len(rivals) > 1) for kind, line in zip(kinds, lines[2:], strict=False))
    assert lines[-1] == (
        f"Figures of {' and of '.join(sorted(rivals))} do not compare."
        if len(rivals) > 1
        else f"Figures are {kinds[0]}."
    )
    for row, kind in zip(table, kinds, strict=True):  # squared error is no bound
        assert (row["validation_negative_elbo"] == "nan") == (kind == SQUARED)
    assert ("−ELBO" in lines[0]) == (set(kinds) != {SQUARED})
    each = [
        f"{row['unit']}, {row['measure']}"
        for row in csv.DictReader((tmp_path / "members.csv").read_text().splitlines())
    ]
    assert each == [kind for kind in kinds for _ in (0, 1)]
    # Pictures have one unit each, and only settings of that kind.
    names = [f"_{number}" for number in range(1, 1 + len(rivals))] if len(rivals) > 1 else [""]
    assert set(drawn) == {f"{what}{name}.png" for what in ("curves", "grid") for name in names}
    for name, (kind, alike) in zip(names, rivals.items(), strict=True):
        curves, unit, title = drawn[f"curves{name}.png"]
        assert (len(curves), unit) == (len(alike), kind.split(",")[0])
        assert (kind in title) == (len(rivals) > 1)
        _, cells, unit, _ = drawn[f"grid{name}.png"]
        assert (len(cells), unit) == (len(alike), kind.split(",")[0])


def test_a_group_of_another_unit_says_so_while_it_trains(capsys):
    groups = [
        Group(2, 1, 2, 0.5, 0, "name=vae", 9.0, "validation −ELBO", "nats per image", 5.0),
        Group(1, 1, 2, 0.5, 0, "name=ae", 3.0, "validation reconstruction", "squared", 5.0),
    ]
    with cli_sweep._progress("image") as tell:
        tell(groups)
    assert capsys.readouterr().out.splitlines() == [
        "group 1/2, 2 members: epoch 1/2, best validation −ELBO so far 9.00 nats per image (name=vae); 5 images/s",
        "group 2/2, 1 member: epoch 1/2, best validation reconstruction so far 3.00 squared (name=ae); 5 images/s",
    ]


# --- The command -----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    out = str(tmp_path / "sweep")
    options = ["--out", out, *flags(**SMALL), "--seeds", "2", "--set", "objective.beta=0.5,2"]
    assert main(["sweep", *options]) == 0
    said = capsys.readouterr().out
    assert "members: 4 = 2 seeds × 2 values of objective.beta" in said
    assert "group 1/1: compiling 4 members as one program" in said
    assert re.search(
        r"group 1/1, 4 members: epoch 2/2, best validation −ELBO so far [\d.]+ nats per image \(beta", said
    )
    assert "| objective.beta | seeds |" in said
    assert "picture:" in said
    assert main(["sweep", "--out", out, "--resume"]) == 0  # as it began
    capsys.readouterr()
    assert main(["evaluate", f"{out}/beta=2,seed=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"]


REFUSED = {
    "--out: expected the folder": ["--seeds", "2"],
    "--set: expected OPTION=VALUE": ["--out", "X", "--set", "objective.beta"],
    "--set: --seeds sweeps seeds": ["--out", "X", "--set", "seed=1,2"],
    "--set: expected an option of data.treatment": ["--out", "X", "--set", "output.figure_every=1,2"],
    "--set: expected each option once": ["--out", "X", "--set", "objective.beta=1", "--set", "objective.beta=2"],
    "--set objective.beta: expected each value once": ["--out", "X", "--set", "objective.beta=1,1"],
    "--set: objective.beta: expected a number; found x": ["--out", "X", "--set", "objective.beta=1,x"],
    "--set: objective.beta: expected a number in [0, inf); found -1": ["--out", "X", "--set", "objective.beta=1,-1"],
    "--set: --objective.betta: expected an option of a configuration; found none of that name (did you mean "
    "--objective.beta?)": ["--out", "X", "--set", "objective.betta=1"],
    "--set: objective.warmup_epochs: expected objective.schedule": [
        "--out",
        "X",
        "--set",
        "objective.warmup_epochs=1,2",
    ],
    "expected 1 to 10,000 members": ["--out", "X", "--seeds", "0"],
    "--seeds: expected a whole number": ["--out", "X", "--seeds", "many"],
    "--resume: expected a sweep that has begun in X, found none": ["--out", "X", "--resume"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused_leaves_nothing(message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *REFUSED[message]]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_sweep_goes_on_with_its_options_in_their_order(base, tmp_path):
    settings = ["objective.beta=1,2", "train.batch_size=50,100"]
    plan, turned = (make_sweep(base, 1, each) for each in (settings, settings[::-1]))
    (tmp_path / "sweep.json").write_text(specification(plan))
    check_sweep_folder(tmp_path, plan, True, False)
    found = r"settings \(the sweep has objective\.beta=1,2 train\.batch_size=50,100, found train\.batch_size=50,100 obj"
    with pytest.raises(UserError, match=f"changed: {found}"):
        check_sweep_folder(tmp_path, turned, True, False)


def test_a_users_file_is_named_from_where_the_command_was_given(tmp_path, capsys, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "--out", "X", *flags(**SMALL), "--set", "objective.name=vae,./missing.py:mine"]) == 2
    assert str(tmp_path / "missing.py") in capsys.readouterr().err
    plan = make_sweep(Config(), 1, [f"model.network=mlp,{tmp_path}/mine.py:Net"])
    assert [member.name for member in members_of(plan)] == ["network=mlp,seed=0", "network=mine.py_Net,seed=0"]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["/x/a/net.py:N", "/x/b/net.py:N"], ["a_net.py_N", "b_net.py_N"]),
        (["/a/x/net.py:N", "/b/x/net.py:N", "mlp"], ["a_x_net.py_N", "b_x_net.py_N", "mlp"]),
        (["/a/net.py:N", "/a/net.py:M"], ["net.py_N", "net.py_M"]),
        (["/net.py:N", "/a/net.py:N"], ["_net.py_N", "a_net.py_N"]),
        (["[8, 16]", "[4]"], ["[8_16]", "[4]"]),
        (["a/b", "c/b"], ["a_b", "c_b"]),
    ],
)
def test_files_of_one_name_in_different_folders_are_said_apart(values, labels):
    assert _labels(values) == labels


def test_settings_whose_folders_some_systems_take_for_the_same_are_refused():
    """Either by what a folder's name does not keep, or by capitals."""
    for values in ("/x/a.py:Net,/x/a.py:net", "/x/a b.py:N,/x/a?b.py:N"):
        with pytest.raises(UserError, match=r"differ only in characters that a folder's name does not keep, or in cap"):
            members_of(make_sweep(PLAIN, 1, [f"model.network={values}"]))


def test_what_a_thousand_members_are_is_known_at_once():
    plan = make_sweep(Config(), 10, ["objective.beta=" + ",".join(map(str, range(50))), "model.latent=2,3"])
    began = time.perf_counter()
    found = members_of(plan)
    assert time.perf_counter() - began < 10  # 0.3 s but for the tests' checks of types; it took 30 s
    assert len({member.name for member in found}) == 1000
    last = found[-1]
    assert last.name == "beta=49,latent=3,seed=9"
    assert (last.config.objective.options.beta, last.config.model.latent, last.config.seed) == (49.0, 3, 9)


def test_what_does_not_fit_the_data_leaves_an_earlier_sweep_alone(base, images, tmp_path):
    run(make_sweep(base, 1, []), images, tmp_path / "sweep")
    before = snapshot(tmp_path / "sweep")
    for setting, why in (
        ("model.classes=5", r"model\.classes: expected labels from 0 to 4 in digits"),
        ("train.schedule=cosine,cosin", r"train\.schedule: .*found 'cosin'"),
    ):
        with pytest.raises(UserError, match=why):
            run(make_sweep(base, 1, [setting]), images, tmp_path / "sweep", overwrite=True)
    assert snapshot(tmp_path / "sweep") == before
    run(make_sweep(base, 1, ["objective.beta=2"]), images, tmp_path / "sweep", overwrite=True)
    assert {path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()} == {"beta=2,seed=0", "figures"}


WRITTEN = {"config": {"train.epochs": 2}, "seeds": 2, "set": {"objective.beta": ["0.5", "1"]}}
# What sweep.json may say wrongly, and the line on it.
MISWRITTEN = {
    "--seeds, --set: expected 1 to 10,000 members; found 1,000,000,000 seeds × 2 values": {"seeds": 10**9},
    "--seeds, --set: expected 1 to 10,000 members; found -1 seeds × 2 values": {"seeds": -1},
    "--seeds, --set: expected 1 to 10,000 members; found 2 seeds × 5,001 values": {
        "set": {"model.latent": [str(number) for number in range(5001)]}
    },
    "seeds: expected a whole number of at most 9,007,199,254,740,992; found 99": {"seeds": 10**300 - 1},
    "seeds: expected a whole number; found Infinity": {"seeds": math.inf},
    "seeds: expected a whole number; found nothing": {"seeds": None},
    "--seeds: expected seeds below 4,294,967,296; found 2 from 4294967295 on": {"config": {"seed": 4294967295}},
    "config: expected options of a configuration; found name": {"config": {"name": "/etc/passwd"}},
    "config: expected options of a configuration; found train": {"config": {"train": "{epochs: 2}"}},
    "config: expected an object; found a list of 1": {"config": [1]},
    "config.train.epochs: expected a whole number or a number or text or": {"config": {"train.epochs": {}}},
    "train.epochs: expected a whole number; found inf": {"config": {"train.epochs": math.inf}},
    "train.epochs: expected a number in [1, 1000000]; found 1000000000": {"config": {"train.epochs": 10**9}},
    "--set: --seeds sweeps seeds; found seed": {"set": {"seed": ["1"]}},
    "--set: expected an option of data.treatment, model., ": {"set": {"output.figure_every": ["1"]}},
    "--objective.betta: expected an option of a configuration": {"set": {"objective.betta": ["1"]}},
    "--set objective.beta: expected values; found none": {"set": {"objective.beta": []}},
    "--set objective.beta: expected each value once; found 1,1": {"set": {"objective.beta": ["1", "1"]}},
    "objective.beta: expected a number; found x": {"set": {"objective.beta": ["1", "x"]}},
    "objective.name: expected at most 4,096 characters; found 5,000": {"set": {"objective.name": ["x" * 5000]}},
    "set.objective.beta: expected a list; found '12'": {"set": {"objective.beta": "12"}},
    "set.objective.beta[0]: expected text; found 1": {"set": {"objective.beta": [1]}},
    "set: expected an object; found a list of 0": {"set": []},
}


@pytest.mark.parametrize("said", MISWRITTEN)
def test_what_a_folder_says_is_swept_is_bounded_as_on_the_command_line(said, tmp_path, capsys):
    content = {name: value for name, value in (WRITTEN | MISWRITTEN[said]).items() if value is not None}
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    before = snapshot(tmp_path)
    assert main(["sweep", "--out", str(tmp_path), "--resume"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"vae-jax: error: {tmp_path}/sweep.json: {said}")
    assert len(line) < 500
    assert snapshot(tmp_path) == before


def test_what_a_sweep_has_written_is_what_is_read(tmp_path):
    plan = make_sweep(PLAIN, 3, ["objective.beta=0.5,1", "model.layers=[5],[6, 7]", "train.gradient_clip=null,2"])
    (tmp_path / "sweep.json").write_text(specification(plan))
    assert read_sweep(tmp_path) == plan


def test_optimisers_and_their_options_are_swept():
    plan = make_sweep(PLAIN, 1, ["optimizer.name=adam,lion"])
    assert [member.config.optimizer for member in members_of(plan)] == [
        OptimizerConfig(),
        OptimizerConfig("lion"),
    ]
    plan = make_sweep(PLAIN, 1, ["optimizer.eps=1e-8,1e-4"])
    assert [member.config.optimizer.options.eps for member in members_of(plan)] == [1e-8, 1e-4]
    with pytest.raises(
        UserError, match=r"settings: optimizer\.weight_decay: expected optimizer\.name adamw or .*found adam"
    ):
        members_of(make_sweep(PLAIN, 1, ["optimizer.weight_decay=0.01,0.1"]))


def test_why_a_member_diverged_is_text(whole, images, tmp_path):
    plan, folder, name = whole[1], shutil.copytree(whole[0], tmp_path / "sweep"), "beta=0.5,latent=2,seed=0"
    for content, said in (
        (b"\xff\x00", "expected text in UTF-8; found the byte 0xff in it"),
        (b"", "expected why the run diverged; found nothing"),
        (b"x" * (1 << 17), "expected at most 65,536 bytes; found a longer one"),
    ):
        (folder / name / "diverged.txt").write_bytes(content)
        with pytest.raises(UserError) as refused:
            run(plan, images, folder, resume=True)
        assert str(refused.value) == f"{folder / name}/diverged.txt: {said}"
    (folder / name / "diverged.txt").write_text('=HYPERLINK("http://x")\n\x1b[31m|<b>`\n')
    ended, *_ = run(plan, images, folder, resume=True)
    assert ended.failure == '=HYPERLINK("http://x")\\n\\x1b[31m|<b>`'
    with (folder / "members.csv").open() as file:
        row, *_ = csv.DictReader(file)
    assert (row["diverged"], row["folder"]) == (f"'{ended.failure}", name)
    assert float(row["train_loss"]) == ended.history[-1]["train_loss"]


def test_a_folder_of_something_else_is_left_alone(base, images, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    plan = make_sweep(base, 1, [])
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="expected a new or empty folder or a sweep's"):
            run(plan, images, tmp_path, **options)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_nothing_is_written_through_links_in_a_sweep(base, images, tmp_path):
    """A member's folder, and that of the pictures, which somebody else has made links of to a run of the user's."""
    folder, victim = tmp_path / "sweep", tmp_path / "victim"
    plan = make_sweep(base, 1, [])
    run(plan, images, folder)
    further = make_sweep(replace(base, train=replace(base.train, epochs=base.train.epochs + 1)), 1, [])
    for name, going_on in (("seed=0", further), ("figures", plan)):
        shutil.copytree(folder / name, victim)
        before = snapshot(victim)
        shutil.rmtree(folder / name)
        (folder / name).symlink_to(victim)
        if going_on is further:  # as if the sweep had been longer from the start
            (folder / "sweep.json").write_text(specification(further))
        with pytest.raises(UserError, match=f"{name}: expected a folder of the run's own, found a link to {victim}"):
            run(going_on, images, folder, resume=True)
        assert snapshot(victim) == before
        run(plan, images, folder, overwrite=True)
        assert snapshot(victim) == before
        assert not (folder / name).is_symlink()
        shutil.rmtree(victim)
