"""Weights that are evaluated in place of those trained, training that stops early, and that begins with a run's."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from run_fixtures import TINY, compiled_once, flags, snapshot

from vae_jax.cli import main
from vae_jax.config import Config, ModelConfig, TrainConfig, with_options
from vae_jax.data import load
from vae_jax.errors import UserError
from vae_jax.interop.weights import load_weights, save_weights
from vae_jax.posteriors import POSTERIORS
from vae_jax.runs import reading
from vae_jax.runs.finetune import start_from_run
from vae_jax.runs.fit import fit
from vae_jax.runs.reading import use
from vae_jax.sweeps.plan import Sweep, make_sweep, members_of, read_sweep
from vae_jax.sweeps.sweep import run
from vae_jax.training import several
from vae_jax.variables import Variables

PLAIN = Config(model=ModelConfig(network="mlp", layers=(5,), latent=3), train=TrainConfig(epochs=2, batch_size=16))
SMALL = {name: value for name, value in TINY.items() if name not in ("model.channels", "model.hidden")}
SMALL |= {"model.network": "mlp", "model.layers": [5]}
SHAPE = (8, 8, 1)


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    with compiled_once(tmp_path_factory.getbasetemp() / "compiled"):
        yield


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
    "options",
    [{"train.ema_decay": 0.9}, {"optimizer.name": "schedule_free"}, {"train.ema_decay": 0.5, "train.accumulate": 2}],
)
def test_what_is_evaluated_is_what_is_used_and_saved(small_data, tmp_path, options):
    config = with_options(PLAIN, **options, **{"train.learning_rate": 1e-2})
    trained = fit(config, small_data)
    used = trained.variables
    raw = trained.state.variables
    assert not np.array_equal(used.params["decoder"]["fc_out"]["kernel"], raw.params["decoder"]["fc_out"]["kernel"])
    as_if_trained = trained._replace(state=trained.state._replace(variables=used), config=PLAIN)
    z = np.zeros((1, 3), np.float32)
    np.testing.assert_array_equal(use(trained).decode(z), use(as_if_trained).decode(z))
    save_weights(trained, tmp_path / "weights.safetensors")
    same(load_weights(tmp_path / "weights.safetensors").variables.params, used.params)


def test_averages_are_evaluated_and_training_goes_on_from_the_weights(small_data):
    plain = fit(PLAIN, small_data)
    averaged = fit(with_options(PLAIN, **{"train.ema_decay": 0.99}), small_data)
    assert [figures["train_loss"] for figures in plain.history] == pytest.approx(
        [figures["train_loss"] for figures in averaged.history], rel=1e-6
    )
    assert plain.history[-1]["test_loss"] != averaged.history[-1]["test_loss"]


STOPPING = {"train.epochs": 6, "train.patience": 2, "train.min_delta": 1e9}  # nothing falls so far but the first


@pytest.mark.parametrize("side_by_side", [False, True])
def test_an_epoch_that_has_begun_is_ended_before_training_stops(small_data, side_by_side):
    kept = []
    config = with_options(PLAIN, **STOPPING | {"train.patience": 5, "train.chunk_steps": 1})
    fit(config, small_data, on_chunk=lambda state, history: kept.append((jax.device_get(state), list(history))))
    state, history = next(pair for pair in kept if int(pair[0].step) == 17)  # in the middle of the fourth epoch of 5
    assert len(history) == 3
    lower = with_options(PLAIN, **STOPPING)  # would have stopped after the third
    if side_by_side:
        program = several.program_that_fits([lower], several.Images(small_data))
        ((state, history),) = several.fit(program, [several.Run(lower, (state, history))])
    else:
        state, history = fit(lower, small_data, resume=(state, history))[2:4]
    assert int(state.step) == 20
    assert [figures["epoch"] for figures in history] == [1, 2, 3, 4]


def test_training_stops_once_the_validation_loss_has_not_fallen(small_data):
    trained = fit(with_options(PLAIN, **STOPPING), small_data)
    assert [figures["epoch"] for figures in trained.history] == [1, 2, 3]
    again = fit(with_options(PLAIN, **STOPPING), small_data, resume=(trained.state, trained.history))
    same(again.state, trained.state)
    assert again.history == trained.history
    further = fit(
        with_options(PLAIN, **STOPPING | {"train.patience": 4}), small_data, resume=(trained.state, trained.history)
    )
    assert len(further.history) == 5


def test_members_stop_by_themselves(small_data):
    rates = 1e-30, 1e-2
    configs = [
        with_options(PLAIN, **{"train.epochs": 4, "train.patience": 1, "train.learning_rate": rate}) for rate in rates
    ]
    alone = [fit(config, small_data) for config in configs]
    program = several.program_that_fits(configs, several.Images(small_data))
    ended = several.fit(program, [several.Run(config) for config in configs])
    assert len(alone[0].history) < len(alone[1].history)
    for (_, history), single in zip(ended, alone, strict=True):
        assert len(history) == len(single.history)


def test_what_patience_needs(small_data):
    with pytest.raises(UserError, match=r"^train\.patience: expected validation images, .*; found none in noise"):
        fit(with_options(PLAIN, **{"train.patience": 1}), replace(small_data, validation=None))
    for check in (fit, several.check):
        with pytest.raises(UserError, match=r"^train\.min_delta: expected train\.patience with it; found null"):
            check(with_options(PLAIN, **{"train.min_delta": 1.0}), small_data)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run with averages, that has stopped early."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    options = SMALL | STOPPING | {"train.ema_decay": 0.9}
    assert main(["train", "--out", str(folder), *flags(**options)]) == 0
    return folder


def test_a_run_tells_that_it_has_stopped_and_stays_so(first, capsys):
    summary = json.loads((first / "summary.json").read_text())
    assert summary["stopped_early"] is True
    assert summary["epochs"] == 3
    assert (first / "figures/reconstructions_epoch_0003.png").is_file()
    assert main(["train", "--out", str(first), "--resume"]) == 0
    assert "stopped after epoch 3: validation loss has not fallen for 2 epochs\n" in capsys.readouterr().out
    assert json.loads((first / "summary.json").read_text())["epochs"] == 3


def begun(first, **options):
    lines = []
    config = with_options(Config(), **SMALL | {"train.start": str(first)} | options)
    return start_from_run(config, SHAPE, 1000, lines.append), lines


def test_training_begins_with_the_evaluated_weights_of_a_run(first):
    state, lines = begun(first, **{"optimizer.name": "sgd", "objective.beta": 2.0})
    same(state.variables, reading.load(first).variables)
    assert int(state.step) == 0
    assert lines == [f"beginning with decoder, encoder from {first}"]


def test_parts_that_the_run_does_not_have_begin_anew(first):
    state, lines = begun(first, **{"prior.name": "mixture", "posterior.name": "iaf"})
    assert set(state.variables.params) == {"decoder", "encoder", "posterior", "prior"}
    (line,) = lines
    assert re.fullmatch(
        r"beginning with decoder, encoder\.\S+, .* from .*; new: (encoder\.\w+, )?posterior, prior", line
    )
    _, lines = begun(first, **{"objective.name": "autoencoder"})
    assert lines == [
        f"beginning with decoder, encoder.fc_mu, encoder.hidden from {first}; left out: encoder.fc_log_var"
    ]


def test_parameters_and_a_state_of_one_name(first, tmp_path, monkeypatch):
    """They are two, and may be plain numbers at first."""

    def booked(options, shapes):
        book = Variables({"book": np.ones(3, np.float32)}, {"book": 0.5})
        return POSTERIORS["diagonal_gaussian"](options, shapes)._replace(init=lambda key: book)

    monkeypatch.setitem(POSTERIORS, "booked", booked)
    state, lines = begun(first, **{"posterior.name": "booked"})
    assert lines == [f"beginning with decoder, encoder from {first}; new: posterior"]
    variables = state.variables._replace(
        params=state.variables.params | {"posterior": {"book": np.full(3, 2.0)}}, state={"posterior": {"book": 0.25}}
    )
    monkeypatch.setattr("vae_jax.runs.finetune.load", lambda *args, **options: SimpleNamespace(variables=variables))
    state, lines = begun(first, **{"posterior.name": "booked"})
    assert lines == [f"beginning with decoder, encoder, posterior from {first}"]
    same(state.variables, variables)


def test_a_shape_that_differs_is_refused(first, tmp_path):
    with pytest.raises(UserError, match=r"train\.start .*: expected decoder\.hidden\.\S+ of shape \[3, 5\]; found"):
        begun(first, **{"model.latent": 3})
    with pytest.raises(UserError, match="expected a run folder, found no such folder"):
        begun(tmp_path / "none")


def test_a_run_from_another_by_the_command(first, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(first.parent)
    folder = tmp_path / "second"
    options = flags(**SMALL, **{"optimizer.name": "lion", "train.learning_rate": 1e-5})
    assert main(["train", "--out", str(folder), "--from", "first", *options]) == 0
    assert f"beginning with decoder, encoder from {first}" in capsys.readouterr().out
    assert f"start: {first}" in (folder / "config.yaml").read_text()
    history = reading.load(folder).history
    assert history[0]["test_loss"] < reading.load(first).history[0]["test_loss"]
    monkeypatch.setattr(
        "vae_jax.runs.finetune.start_from_run", None
    )  # a run that has a checkpoint does not look there again
    assert main(["train", "--out", str(folder), "--resume", "--train.epochs", "3"]) == 0
    assert len(reading.load(folder).history) == 3


def test_what_is_begun_with_is_not_overwritten(first, tmp_path, monkeypatch, capsys):
    options = flags(**SMALL)
    monkeypatch.chdir(first.parent)
    before = snapshot(first)
    assert main(["train", "--out", "first", "--from", "../*/first".replace("*", first.parent.name), "--overwrite"]) == 2
    expected = "train.start: expected a run outside {}, which --overwrite deletes; found "
    assert expected.format("first") in capsys.readouterr().err
    assert snapshot(first) == before
    folder = tmp_path / "sweep"
    assert main(["sweep", "--out", str(folder), "--train.epochs=1", *options]) == 0
    before = snapshot(folder)
    for given in (["--from", str(folder / "seed=0")], ["--set", f"train.start={first},{folder}/seed=0"]):
        assert main(["sweep", "--out", str(folder), "--overwrite", *given, *options]) == 2
        assert expected.format(folder) in capsys.readouterr().err
        assert snapshot(folder) == before


def test_a_sweep_over_what_is_begun_with(first, tmp_path, monkeypatch):
    monkeypatch.chdir(first.parent)
    config = with_options(Config(), **SMALL | {"train.epochs": 1})
    plan = make_sweep(config, 1, ["train.start=first,second"])
    second = first.with_name("second")
    assert plan.settings == {"train.start": [str(first), str(second)]}
    assert [member.name for member in members_of(plan)] == ["start=first,seed=0", "start=second,seed=0"]
    begun = make_sweep(config, 1, ["train.start=null,first"])
    assert begun.settings == {"train.start": ["null", str(first)]}
    assert [member.config.train.start for member in members_of(begun)] == [None, str(first)]
    relative = Sweep(with_options(config, **{"train.start": "first"}), 1, {"train.start": ["first"]})
    ended = run(relative, load(config.data), tmp_path / "sweep")
    assert [outcome.member.config.train.start for outcome in ended] == [str(first)]
    kept = read_sweep(tmp_path / "sweep")
    assert (kept.config.train.start, kept.settings) == (str(first), {"train.start": [str(first)]})


def test_a_sweep_from_a_run(first, tmp_path):
    folder = tmp_path / "sweep"
    options = flags(**SMALL | {"train.epochs": 1}, **{"train.start": first})
    assert main(["sweep", "--out", str(folder), "--seeds", "2", *options]) == 0
    losses = [json.loads(path.read_text())["test_loss"] for path in sorted(folder.glob("*/summary.json"))]
    assert len(losses) == 2
    data = load(reading.load(first).config.data)
    config = with_options(Config(), **SMALL | {"train.epochs": 1, "train.start": str(first)})
    assert fit(config, data).history[0]["test_loss"] == pytest.approx(losses[0], rel=1e-5)
