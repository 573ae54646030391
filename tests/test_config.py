"""Configurations: what a YAML file and flags give, and that whatever is wrong with them is said in one line."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vae_jax.config import (
    PARTS,
    Config,
    ObjectiveConfig,
    adapted,
    as_listed,
    changed_options,
    check_used,
    load_config,
    options_of,
    read_file,
    shipped,
    to_yaml,
    values_in,
    with_options,
    without_unused,
)
from vae_jax.config.change import options_of_section
from vae_jax.config.parts import registry_of
from vae_jax.config.section import options_class
from vae_jax.errors import UserError
from vae_jax.options import SIZE_LIMIT, options_in

SECTIONS = {field.name: field.type for field in dataclasses.fields(Config) if field.name != "seed"}
KNOWN = {f"{name}.{option}": known for name in SECTIONS for option, known in options_of_section(name).items()}
OPTIONS = list(KNOWN)  # of all parts
CHANGED = {"seed": 7, "data.source": "folder", "data.path": "a b", "model.strides": [1, 2], "model.channels": [4, 8]}


def refused(*arguments, **options) -> str:
    """The message that refuses a configuration."""
    with pytest.raises(UserError) as caught:
        load_config(*arguments, **options)
    message = str(caught.value)
    assert message
    assert message.splitlines() == [message]
    return message


@pytest.fixture
def file(tmp_path):
    """Writes a YAML file."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "some.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# --- What is read ----------------------------------------------------------------------------------------------------


def test_without_anything_the_defaults():
    assert load_config() == Config()


def test_configurations_are_shipped():
    assert {"article", "digits", "ae", "denoising_ae"} <= set(shipped())


@pytest.mark.parametrize("name", shipped())
def test_shipped_configuration_loads(name):
    path = shipped()[name]
    assert load_config(name) == load_config(path)
    said = yaml.safe_load(path.read_text())
    found = load_config(name)
    for section, options in said.items():
        if section == "seed":
            assert found.seed == options
            continue
        for option, value in options.items():
            value = tuple(value) if isinstance(value, list) else value
            assert options_of(found)[f"{section}.{option}"] == value
    assert "vae-jax train --config" in path.read_text()


@pytest.mark.parametrize("options", [{}, CHANGED])
def test_yaml_round_trip(options, file):
    config = load_config(**options)
    assert load_config(file(to_yaml(config))) == config


@pytest.mark.parametrize("name", shipped())
def test_yaml_round_trip_of_shipped(name, file):
    assert load_config(file(to_yaml(load_config(name)))) == load_config(name)


# What YAML, in one version or another, takes for something else than text, or writes over several lines.
STRANGE = [
    "1e3",
    "0x1F",
    "017",
    "0o17",
    "1:30",
    "1_000",
    "+1",
    "-.5",
    ".inf",
    "-.INF",
    ".nan",
    "yes",
    "No",
    "on",
    "~",
    "",
]
STRANGE += [
    "null",
    "Null",
    "true",
    "=",
    "<<",
    "2024-01-01",
    "- a",
    "a: b",
    "a #b",
    "#",
    "&a",
    "*a",
    "!!int 3",
    "@",
    "`",
    "%",
]
STRANGE += [
    "'",
    '"',
    "\\",
    "{a}",
    "[a]",
    "a,b",
    "?",
    "|",
    ">",
    " a ",
    "a\n",
    "\n\na",
    "a\r\nb",
    "a\tb",
    "\x85",
    "\u2028",
    "é",
    "😀",
]
STRANGE += ["\x07", "\x1b[0m", "\x7f", "\ufeff", "\uffff", "---", "...", "a" * 4096, "a b  c " * 500, "\n" * 300]
texts = st.sampled_from(STRANGE) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
texts |= st.text("01e+-.:_xXoOnNfFaAlLuU~ \n\t#'\"[]{},&*!|>%@", max_size=12)
floats = st.floats(1e-320, 1e300) | st.sampled_from([1e-3, 1e3, 1e22, 1e16, 1 / 3, 5e-324])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts, texts, floats, st.lists(st.integers(1, 65536), max_size=64), st.none() | floats)
def test_whatever_is_written_is_read_back(file, path, network, rate, layers, clip):
    options = {"data.source": "array", "data.path": path, "model.network": "mlp", "model.layers": layers}
    config = load_config(**options, **{"train.learning_rate": rate, "train.gradient_clip": clip})
    assert (config.data.path, config.train.learning_rate, config.train.gradient_clip) == (path, rate, clip)
    assert config.model.options.layers == tuple(layers)
    own = with_options(config, **{"model.network": f"{network[:4000]}:Net", "posterior.name": network})
    for each in (config, own):
        assert read_file(file(to_yaml(each))) == each
        # What writes overrides as JSON: sweep.json, and a comparison's other processes.
        assert with_options(Config(), **json.loads(json.dumps(changed_options(each)))) == each


@pytest.mark.parametrize("text", STRANGE)
def test_other_readers_of_yaml_take_no_text_for_something_else(text):
    assert yaml.safe_load(to_yaml(with_options(Config(), **{"data.path": text})))["data"]["path"] == text


def test_values_of_a_sweep_are_read_as_their_option_is():
    assert values_in("objective.name", "vae,1e3,017,null") == ["vae", "1e3", "017", "null"]  # names
    assert values_in("train.learning_rate", "1e-3,1,.5") == ["0.001", "1", "0.5"]
    assert values_in("train.gradient_clip", "null,2") == ["null", "2"]
    assert values_in("model.channels", "[8,16],[4]") == ["[8, 16]", "[4]"]
    for option, text in (("train.learning_rate", ".inf"), ("optimizer.eps", "-.inf"), ("objective.beta", ".nan")):
        with pytest.raises(UserError, match=f"{option}: expected a number in .*; found"):
            with_options(Config(), **{option: values_in(option, text)[0]})
    for option in ("objective.beta", "objective.name"):
        with pytest.raises(UserError, match=f"{option}: expected values with commas"):
            values_in(option, "1,''" if option == "objective.name" else "1,null")


def test_yaml_holds_every_option():
    written = yaml.safe_load(to_yaml(Config()))
    assert {f"{section}.{option}" for section in SECTIONS for option in written[section]} | {"seed"} == set(
        options_of(Config())
    )
    own = {name: set(written[name]) for name in PARTS}
    for name, kind in PARTS.items():
        part = options_class(name, written[name][kind.option])
        assert own[name] == {*options_in(SECTIONS[name]), *options_in(part)}  # of the chosen part, and of no other


def test_overrides_win_over_the_file(file):
    path = file("train: {epochs: 3, batch_size: 7}")
    found = load_config(path, **{"train.epochs": 4})
    assert (found.train.epochs, found.train.batch_size) == (4, 7)


def test_override_may_be_a_path(tmp_path):
    assert load_config(**{"data.source": "folder", "data.path": tmp_path}).data.path == str(tmp_path)


def test_shipped_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config("digits").train.epochs == load_config(shipped()["digits"]).train.epochs


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("train.epochs", "ten"),
        ("train.epochs", True),
        ("train.epochs", 2.5),
        ("train.epochs", 2.0),
        ("train.epochs", [1]),
        ("train.learning_rate", "fast"),
        ("train.learning_rate", True),
        ("model.batch_norm", 1),
        ("model.batch_norm", "maybe"),
        ("model.channels", 4),
        ("model.channels", [4, True]),
        ("model.channels", [4, 2.5]),
        ("model.strides", "two"),
        ("model.strides", 2.0),
        ("data.image_size", {"a": 1}),
        ("seed", "x\ny"),
    ],
)
def test_wrong_type(option, value, file):
    assert option in refused(**{option: value})
    section, _, name = option.partition(".")
    path = file(yaml.safe_dump({section: {name: value} if name else value}))
    message = refused(path)
    assert str(path) in message
    assert section in message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("data.image_size", 0),
        ("data.image_size", 1025),
        ("data.channels", 2),
        ("data.channels", 4),
        ("data.validation", -0.1),
        ("data.test", -1),
        ("model.latent", 0),
        ("model.channels", []),
        ("model.channels", [4, 0]),
        ("model.kernel", 0),
        ("model.strides", 0),
        ("model.strides", [2, 0]),
        ("model.paddings", [0, -1]),
        ("model.hidden", 0),
        ("model.batch_norm_momentum", 0),
        ("model.batch_norm_momentum", 1.5),
        ("model.head_dropout", 1),
        ("model.decoder_dropout", -0.1),
        ("objective.beta", -1),
        ("objective.corruption_level", 1.1),
        ("train.epochs", 0),
        ("train.epochs", int("9" * 400)),
        ("train.batch_size", 0),
        ("train.batch_size", int("9" * 30)),
        ("train.learning_rate", 0),
        ("train.learning_rate", -1e-3),
        ("optimizer.b1", 1),
        ("optimizer.b2", -0.1),
        ("optimizer.eps", 0),
        ("train.warmup_steps", -1),
        ("train.warmup_steps", int("9" * 30)),
        ("train.decay_rate", 1.5),
        ("train.gradient_clip", 0),
        ("train.chunk_steps", -1),
        ("output.keep_checkpoints", 0),
        ("output.checkpoint_minutes", 0),
        ("output.figure_every", 0),
        ("output.figure_images", 1025),
    ],
)
def test_out_of_range(option, value):
    message = refused(**{option: value})
    assert message.startswith(f"{option}: expected ")
    assert len(message) < 200


NUMBERS = [name for name, option in KNOWN.items() if float in option.kinds]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("option", NUMBERS)
def test_every_number_must_be_finite(option, value, file):
    section, name = option.split(".")
    assert option in refused(file(f"{section}:\n  {name}: {value}"))


@pytest.mark.parametrize("option", ["seed", *OPTIONS])
def test_null_is_taken_only_where_it_means_something(option, file):
    section, _, name = option.partition(".")
    path = file(f"{section}:\n  {name}: null" if name else f"{section}: null")
    if option in KNOWN and KNOWN[option].default is None:
        assert load_config(path) == Config()
    else:
        assert refused(path) == f"{path}: {option}: expected a value; found null"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("model:\n  latnt: 3", "model: expected one of .* found 'latnt' .did you mean latent"),
        ("modl: 3", "did you mean model"),
        ("train: {epochs: [1, 2", "expected a YAML file"),
        ("train:\n\tepochs: 3", "expected a YAML file"),
        ("seed: 1\n---\nseed: 2", "expected a YAML file"),
        ("", "found nothing"),
        ("# only a comment", "found nothing"),
        ("- seed", "found list"),
        ("hello", "found str"),
        ("3", "found int"),
        ("data: null", "data: expected a section"),
        ("data: [1]", "data: expected a section"),
        ("data: digits", "data: expected a section"),
        ("1: 2", "found '1'"),
        ("data: {1: 2}", "found '1'"),
        ("data.source: digits", "found 'data.source'"),
        # Not a configuration's to say.
        ("overwrite: true", "found 'overwrite'"),
        ("out: elsewhere", "found 'out'"),
        ("config: article", "found 'config'"),
        ("data: {class_path: os.system}", "found 'class_path'"),
        # YAML that builds more than it says.
        ("seed: !!python/object/apply:os.getcwd []", "plain options"),
        ("seed: !!bool x", "plain options"),
        ("seed: &a 1\ntrain: {epochs: *a}", "plain options"),
        ("a: &a [*a]", "plain options"),
        ("a: " + "[" * 100_000, "plain options|maximum nesting depth"),
        ("a: " + "{b: " * 1000 + "1" + "}" * 1000, "plain options"),
        # Binary, huge.
        (b"\xff\xfe\x00\x01", "expected a YAML file"),
        (bytes(range(256)), "expected a YAML file"),
        (b"\0" * 10, "expected a YAML file"),
        ("seed: " + "9" * 5000, "expected a YAML file"),
        ("train: {learning_rate: " + "9" * 400 + "}", "too large"),
        (" " * (SIZE_LIMIT + 1), "found a longer one"),
    ],
    ids=lambda value: repr(value[:25]),
)
def test_broken_file(content, named, file):
    path = file(content)
    message = refused(path)
    assert message.startswith(str(path))
    assert re.search(named, message)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        # YAML 1.1 would read 15, 31, 90 and 90.5.
        ("seed: 017", "seed: expected a decimal number; found 017"),
        ("train: {epochs: 0x1F}", "train.epochs: expected a decimal number; found 0x1F"),
        ("train: {epochs: 1:30}", "train.epochs: expected a decimal number; found 1:30"),
        ("data: {test: 1:30.5}", "data.test: expected a decimal number; found 1:30.5"),
        ("model: {channels: [8, 017]}", "model.channels: expected a decimal number; found 017"),
        ("train: {epochs: 1e3}", "train.epochs: expected a whole number; found 1000.0"),
        ("data: {source: no}", "data.source: expected text; found False"),
        ("data: {name: 2024}", "data.name: expected text or null; found 2024"),
        ("model: {channels: 8}", "model.channels: expected a list of whole numbers; found 8"),
        ("model: {strides: x}", "model.strides: expected a whole number or a list of whole numbers; found x"),
        # Said twice.
        ("seed: 1\nseed: 2", "'seed' again in line 2"),
        ("train: {epochs: 1, epochs: 2}", "'epochs' again in line 1"),
        ("train: {<<: {epochs: 3}}", "plain options"),
        ("? [a]\n: 1", "plain options"),
        # Large.
        ("model: {channels: [" + "8, " * 100 + "8]}", "model.channels: expected at most 64 numbers; found 101"),
        ("model: {channels: [" + "8, " * 20_000 + "8]}", "plain options"),
        ("data: {path: " + "a" * 5000 + "}", "data.path: expected at most 4,096 characters; found 5,000"),
        ('data: {path: "a\\0"}', "data.path: expected at most 4,096 characters; found a null character"),
        ("seed: " + "a" * 100_000, "seed: expected a whole number; found aaa"),
    ],
    ids=lambda value: repr(value[:25]),
)
def test_what_yaml_makes_of_it(content, named, file):
    message = refused(file(content))
    assert named in message
    assert len(message) < 1000


def test_numbers_as_they_look(file):
    """YAML 1.1 takes some of these for text or dates."""
    found = load_config(
        file("seed: 1_000\ntrain: {learning_rate: 1e-4}\ndata: {source: array, validation: .5, path: 2024-1-1}")
    )
    assert (found.seed, found.train.learning_rate, found.data.validation) == (1000, 1e-4, 0.5)
    assert found.data.path == "2024-1-1"
    assert load_config(file("\ufeffmodel: {batch_norm: no}\r\nseed: 3\r\n")).seed == 3
    assert load_config(file("data: {source: array, path: 017}")).data.path == "017"


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("seed", "017", "seed: expected a decimal number; found 017"),
        ("train.epochs", "1:30", "train.epochs: expected a decimal number; found 1:30"),
        ("model.channels", "[0x8]", "model.channels: expected a decimal number; found 0x8"),
        ("model.channels", [1] * 65, "model.channels: expected at most 64 numbers; found 65"),
        ("model.channels", [1] * 1_000_000, "model.channels: expected at most 64 numbers; found 1,000,000"),
        ("model.channels", "[" * 20_000, "model.channels: expected a list"),
        ("train.epochs", "x" * 1_000_000, "train.epochs: expected at most 131,072 characters; found 1,000,000"),
        ("data.path", "a\0", "data.path"),
        ("train.learning_rate", "9" * 400, "train.learning_rate: expected a number below 1e308; found one too large"),
        ("train.learning_rate", "9" * 5000, "train.learning_rate: expected a number; found 999"),
        ("seed", "!!bool x", "seed: expected a whole number; found !!bool x"),
        ("model.channels", "[1, *a]", "model.channels: expected a list of whole numbers; found [1, *a]"),
        ("data", "/dev/zero", "data: expected one of its options"),
        ("train", "some.yaml", "train: expected one of its options"),
    ],
    ids=lambda value: repr(value)[:25],
)
def test_what_flags_make_of_it(option, value, named):
    message = refused(**{option: value})
    assert named in message
    assert len(message) < 1000


def test_a_section_at_once():
    assert load_config(train="{epochs: 3, batch_size: 7}").train.batch_size == 7
    assert load_config(train={"epochs": 3, "batch_size": 7}).train.batch_size == 7
    assert "did you mean train.epochs?" in refused(train="{epoch: 3}")


def test_without_the_tests_checks_of_types():
    """Sections made by hand are what their types say, as a run's config.yaml will be; and a setting is read at once."""
    code = """
import time
from pathlib import Path
import numpy as np
from vae_jax import UserError
from vae_jax.config import *
made = Config(np.int64(3), DataConfig("array", path=Path("x.npy"), validation=1), ModelConfig(channels=[4, 8]),
              train=TrainConfig(learning_rate=np.float32(0.5), skip_nonfinite=np.True_))
print(changed_options(made), hash(made) is not None, to_yaml(made)[:7])
for wrong in ({"latent": 2.0}, {"batch_norm": 1}, {"network": 3}):
    try: ModelConfig(**wrong)
    except UserError as error: print(error)
def seconds(number):
    began = time.perf_counter()
    changed = with_options(Config(), **{"objective.beta": f"{number}e-3", "model.channels": f"[{number}, 8]"})
    check_used(changed)
    assert (changed.objective.options.beta, changed.model.options.channels) == (number / 1000, (number, 8))
    return time.perf_counter() - began
print(sorted(seconds(number) for number in range(1, 200))[100] < 1e-3)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [
        "{'seed': 3, 'data.source': 'array', 'data.path': 'x.npy', 'data.validation': 1.0, 'model.channels': (4, 8), "
        "'train.learning_rate': 0.5, 'train.skip_nonfinite': True} True seed: 3",
        "model.latent: expected a whole number; found 2.0",
        "model.batch_norm: expected true or false; found 1",
        "model.network: expected text; found 3",
        "True",
    ]


def test_special_files(tmp_path):
    os.mkfifo(tmp_path / "fifo.yaml")  # would wait for a writer forever
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name in ("fifo.yaml", "zero.yaml"):
        assert refused(tmp_path / name).endswith("found a special file")


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "some.yaml").write_text("seed: 5")
    assert load_config("~/some.yaml").seed == 5
    assert "~nobody-of-this-name is no home folder here" in refused("~nobody-of-this-name/some.yaml")


# --- What would be ignored -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"data.name": "cifar10"}, "data.name: expected data.source tfds; found digits"),
        ({"data.path": "x", "data.source": "mnist"}, "data.path: expected data.source folder or array; found mnist"),
        ({"data.manual_dir": "x", "data.source": "folder"}, "data.manual_dir: expected data.source mnist or "),
        ({"data.skip_bad": True, "data.source": "mnist"}, "data.skip_bad: expected data.source folder; found mnist"),
        ({"objective.name": "autoencoder", "objective.beta": 2}, "objective.beta: expected objective.name vae; found"),
        ({"objective.corruption_level": 0.5}, "objective.corruption_level: expected objective.name denoising_auto"),
        ({"train.decay_rate": 0.5}, "train.decay_rate: expected train.schedule exponential; found constant"),
        (
            {"model.batch_norm": False, "model.batch_norm_momentum": 0.5},
            "model.batch_norm_momentum: expected model.batch_norm true; found false",
        ),
        (
            {"objective.name": "ciwae", "objective.gradient": "stl"},
            "objective.gradient: expected objective.name vae or iwae",
        ),
        ({"objective.name": "iwae", "objective.beta": 4}, "objective.beta: expected objective.name vae; found iwae"),
    ],
    ids=lambda value: next(reversed(value)) if isinstance(value, dict) else "",
)
def test_options_that_nothing_looks_at_are_refused_on_every_way_in(options, named, file, small_data):
    from vae_jax.model.build import build
    from vae_jax.runs.fit import fit

    nested = {}
    for option, value in options.items():
        section, _, name = option.partition(".")
        nested.setdefault(section, {})[name] = value
    ways = [lambda: load_config(**options), lambda: load_config(file(yaml.safe_dump(nested)))]
    ways.append(lambda: check_used(with_options(Config(), **options)))
    ways.append(lambda: build(with_options(Config(), **options), (32, 32, 1)))
    ways.append(lambda: fit(with_options(Config(), **options), small_data))
    for way in ways:
        with pytest.raises(UserError, match=re.escape(named)):
            way()
    # A run that an older version made so can still be looked at: as the model that it is.
    used = read_file(file(yaml.safe_dump(nested)), strict=False)
    check_used(used)
    option = named.split(":")[0]
    assert used == with_options(Config(), **{name: value for name, value in options.items() if name != option})


def test_what_is_unused_only_since_something_else_is_goes_too():
    plain = with_options(Config(), **{"model.network": "mlp", "model.gated": True, "model.activation": "relu"})
    assert without_unused(plain) == with_options(Config(), **{"model.network": "mlp", "model.gated": True})
    odd = {"objective.name": "autoencoder", "posterior.name": "iaf", "posterior.flows": 2, "prior.name": "vamp"}
    assert adapted(Config(), **odd) == Config(objective=ObjectiveConfig("autoencoder"))
    assert adapted(plain, **{"model.network": "residual"}) == with_options(
        Config(), **{"model.network": "residual", "model.activation": "relu"}
    )


def test_a_files_options_of_other_parts_are_taken_where_they_are_as_by_default(file):
    """As configurations of an earlier version list all of them."""
    whole = file("objective: {name: iwae, samples: 3, beta: 1.0, groups: 4}\ntrain: {adam_b1: 0.5}\nprior: {flows: 4}")
    found = load_config(whole)
    assert found == load_config(**{"objective.name": "iwae", "objective.samples": 3, "optimizer.b1": 0.5})
    assert "adam_b1" not in to_yaml(found)
    for content, named in (
        ("objective: {beta: 2.0, name: iwae}", "objective.beta: expected objective.name vae; found iwae"),
        (
            "objective: {samples: 6}",
            "samples: expected objective.name iwae or miwae or piwae or ciwae or score_vae or relax_vae or vimco;",
        ),
        ("prior: {flows: 5}", "prior.flows: expected prior.name flow; found standard_normal"),
        ("objective: {groups: many}", "objective.groups: expected a whole number; found many"),
    ):
        assert named in refused(file(content))


@pytest.mark.parametrize(
    ("option", "default", "line"),
    [
        ("optimizer.weight_decay", 0.01, "expected optimizer.name adamw or "),
        ("optimizer.momentum", 0.9, "expected optimizer.name sgd"),
        (
            "objective.samples",
            5,
            "expected objective.name iwae or miwae or piwae or ciwae or score_vae or relax_vae or vimco; found vae",
        ),
    ],
)
def test_an_option_of_another_part_is_refused_as_by_default_too(option, default, line, file):
    section, name = option.split(".")
    ways = [lambda: load_config(**{option: default}), lambda: with_options(Config(), **{option: str(default)})]
    ways.append(lambda: SECTIONS[section](**{name: default}))
    for way in ways:
        with pytest.raises(UserError, match=re.escape(f"{option}: {line}")):
            way()
    listing = file(yaml.safe_dump({section: {name: default}}))
    if section == "optimizer":  # which no earlier version has listed
        assert f"{option}: {line}" in refused(listing)
    else:
        assert load_config(listing) == as_listed(Config(), **{option: default}) == Config()


def test_a_name_and_its_options_change_together_in_any_order():
    changes = [("objective.samples", "3"), ("objective.name", "iwae"), ("objective.gradient", "dreg")]
    wanted = Config(objective=ObjectiveConfig("iwae", samples=3, gradient="dreg"))
    for order in (changes, changes[::-1], [changes[1], changes[2], changes[0]]):
        assert load_config(**dict(order)) == wanted
    assert load_config(objective="{samples: 3, gradient: dreg, name: iwae}") == wanted
    # What both parts have goes along; what only the one before has must be as it is by default.
    stl = with_options(Config(), **{"objective.gradient": "stl"})
    assert with_options(stl, **{"objective.name": "iwae"}).objective.options.gradient == "stl"
    with pytest.raises(
        UserError, match=r"objective\.gradient: expected objective\.name vae or iwae or miwae or score_vae; found"
    ):
        with_options(stl, **{"objective.name": "ciwae"})


@pytest.mark.parametrize("name", shipped())
def test_shipped_configurations_use_their_options(name):
    check_used(load_config(name))
    check_used(load_config(name, **{"data.cache_dir": "x"}))


def test_sources_and_objectives_of_ones_own_look_at_what_they_like():
    check_used(load_config(**{"data.source": "mine", "data.name": "x", "objective.name": "mine", "objective.beta": 3}))


def test_choices_are_those_of_the_registries():
    from vae_jax.data import SOURCES
    from vae_jax.data.treatments import TREATMENTS
    from vae_jax.likelihoods.gaussian import VARIANCES
    from vae_jax.networks import PRECISIONS
    from vae_jax.networks.initialization import INITIALIZATIONS
    from vae_jax.objectives.autoencoder import CORRUPTIONS
    from vae_jax.objectives.vae import SCHEDULES
    from vae_jax.optimizer import SCHEDULES as RATES
    from vae_jax.training.step import REDUCTIONS

    tables = {"data.source": SOURCES, "data.treatment": TREATMENTS, "model.initialization": INITIALIZATIONS}
    tables |= {"model.precision": PRECISIONS, "likelihood.variance": VARIANCES, "objective.schedule": SCHEDULES}
    tables |= {"objective.corruption": CORRUPTIONS, "train.schedule": RATES, "train.reduction": REDUCTIONS}
    for option, table in tables.items():
        assert set(KNOWN[option].choices.names) == set(table), option


@pytest.mark.parametrize("section", PARTS)
def test_every_part_tells_what_its_options_are(section):
    for name in registry_of(section):
        for option, known in options_in(options_class(section, name)).items():
            assert len(known.help.split()) >= 3, f"{section}.{option} of {name} has no help"
            assert known.interval or known.choices or known.kinds == (bool,), f"{section}.{option} may be anything"
            made = load_config(**{f"{section}.{PARTS[section].option}": name, f"{section}.{option}": known.default})
            assert getattr(getattr(made, section).options, option) == known.default


def test_no_such_file(tmp_path):
    assert "no such file" in refused(tmp_path / "none.yaml")
    assert "article" in refused("artcle")
    assert "a folder" in refused(tmp_path)
    assert "too long" in refused("a" * 5000)
    refused("")


@pytest.mark.parametrize("option", ["train.epoch", "train.nope", "nope", "overwrite", "config "])
def test_unknown_option(option):
    assert option in refused(**{option: 1})


# --- Whatever it is, it is a configuration or a UserError ------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
several = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(*arguments, **options) -> Config | None:
    """A configuration, or None where it is refused as it should be."""
    message = ""
    try:
        return load_config(*arguments, **options)
    except UserError as error:
        message = str(error)
    assert message.splitlines() == [message]
    return None


@several
@given(st.dictionaries(st.sampled_from(OPTIONS), values, min_size=1, max_size=3))
def test_any_values(file, options):
    nested = {}
    for option, value in options.items():
        section, name = option.split(".")
        nested.setdefault(section, {})[name] = value
    found = read(file(yaml.safe_dump(nested)))
    assert found is None or load_config(file(to_yaml(found))) == found


@several
@given(st.text(alphabet="abé01 \n\t:-[]{}&*!|>'\"%@`#,?.~<=\0\u2028", max_size=40) | st.binary(max_size=40))
def test_any_text(file, content):
    read(file(content))


@several
@given(st.sampled_from(OPTIONS), values)
def test_any_override(option, value):
    read(**{option: value})


# --- Help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", [Config, *SECTIONS.values()])
def test_docstring_tells_every_field(section):
    attributes = section.__doc__.split("Attributes:")[1]
    documented = re.findall(r"^ {8}(\w+): \S", attributes, re.MULTILINE)
    assert documented == [
        field.name for field in dataclasses.fields(section) if field.name not in ("changed", "listed")
    ]


def test_the_list_of_configurations_says_what_each_promises(capsys):
    from vae_jax.cli import main

    assert main(["configs"]) == 0
    listed = capsys.readouterr().out.split("\n\n")
    assert [entry.split("\n")[0] for entry in listed[:-1]] == list(shipped())
    for name, entry in zip(shipped(), listed, strict=False):
        about, commands, result = re.split(r"\n((?:    .*\n)+)", f"{entry}\n")
        assert len(about.split()) > 4
        assert f"vae-jax train --config {name}" in commands
        assert re.search(r"\d", result), f"{name} promises no result"
    assert main(["configs", "digits"]) == 0
    assert capsys.readouterr().out == shipped()["digits"].read_text(encoding="utf-8")
    assert main(["configs", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("vae-jax: error: NAME: expected one of ae, article, ")
