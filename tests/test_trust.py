"""Whose code a run's folder or configuration may run: what this user's own training has signed, or what is trusted."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from run_fixtures import snapshot

from vae_jax import cli, registry
from vae_jax.cli.arguments import Parser
from vae_jax.config import Config, load_config, to_yaml
from vae_jax.errors import UserError
from vae_jax.interop.export import export
from vae_jax.runs import own_parts, signature
from vae_jax.runs.folder import read_config
from vae_jax.runs.reading import load
from vae_jax.sweeps.plan import make_sweep, specification

MINE = "def bound(key, model, images, options): ...\n\n\ndef other(key, model, images, options): ...\n"
FLAG = "--trust-code"


def begin(folder, name):
    """A run as it stands when its training has begun with this objective."""
    folder.mkdir(parents=True)
    config = own_parts.absolute(configured(name))
    (folder / "config.yaml").write_text(to_yaml(config))
    names = own_parts.names_in(config)
    assert own_parts.keep(own_parts.sources(names), names, folder) == ""
    return folder


def configured(name):
    return load_config(**{"objective.name": str(name), "data.image_size": 8, "data.channels": 1})


def rename(folder, name):
    """Writes another import path into a run's configuration."""
    (folder / "config.yaml").write_text(to_yaml(configured(name)))


@pytest.fixture
def mine(tmp_path):
    """A user's file and a run whose training has begun with it."""
    (tmp_path / "mine.py").write_text(MINE)
    return begin(tmp_path / "run", f"{tmp_path}/mine.py:bound")


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """What a stranger's code leaves behind that was run."""
    monkeypatch.setenv("MARK", str(tmp_path / "ran"))
    return tmp_path / "ran"


def evil(path):
    """A stranger's file; what it does first is to leave a mark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("import os, pathlib\npathlib.Path(os.environ['MARK']).write_text(__name__)\n" + MINE)
    return path


def used(folder, trust_code=False, users=()):
    return own_parts.as_kept(read_config(folder), folder, trust_code, users).objective.name


def refused(function, *arguments, **named):
    with pytest.raises(UserError) as caught:
        function(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def outcome_of(capsys, *arguments):
    code = cli.main([str(each) for each in arguments])
    return code, capsys.readouterr().err


# What a stranger's run may name


def by_path(folder, tmp_path):
    rename(folder, f"{evil(tmp_path / 'evil.py')}:bound")
    return tmp_path / "evil.py"


def by_relative_path(folder, tmp_path):
    evil(tmp_path / "evil.py")
    rename(folder, "evil.py:bound")
    return tmp_path / "evil.py"


def by_module(folder, tmp_path):
    evil(tmp_path / "e1" / "__init__.py")
    rename(folder, "e1.evil:bound")
    return evil(tmp_path / "e1" / "evil.py")


def by_package(folder, tmp_path):
    """Of a package the module is none, but looking for it might import the package."""
    evil(tmp_path / "e1" / "__init__.py")
    rename(folder, "e1.nothing:bound")
    return "e1.nothing"


def by_installed_module(folder, tmp_path):
    rename(folder, "subprocess:call")
    return "subprocess.py"


def by_copy(folder, tmp_path):
    shutil.rmtree(folder / "code")
    path = evil(folder / "code" / "evil.py")
    entry = {"sha256": registry.source_of(str(path)).sha256, "copy": "evil.py"}
    (folder / "code" / "sources.json").write_text(json.dumps({"/nowhere/evil.py": entry}))
    rename(folder, "/nowhere/evil.py:bound")
    return path


def by_copy_in_a_signed_index(folder, tmp_path):
    """The signature is of another index."""
    path, index = evil(folder / "code" / "evil.py"), folder / "code" / "sources.json"
    entry = {"sha256": registry.source_of(str(path)).sha256, "copy": "evil.py"}
    index.write_text(json.dumps({"/nowhere/evil.py": entry}))
    rename(folder, "/nowhere/evil.py:bound")
    return path


def by_edited_copy(folder, tmp_path):
    return evil(folder / "code" / "mine.py")


def by_edited_copy_and_index(folder, tmp_path):
    path, index = evil(folder / "code" / "mine.py"), folder / "code" / "sources.json"
    old, new = (registry.source_of(str(file)).sha256 for file in (tmp_path / "mine.py", path))
    index.write_text(index.read_text().replace(old, new))
    return path


def by_another_entry(folder, tmp_path):
    rename(folder, f"{tmp_path}/mine.py:other")
    return tmp_path / "mine.py"


COMMANDS = (
    ["evaluate", "run"],
    ["reconstruct", "run"],
    ["sample", "run", "--out", "x.png"],
    ["encode", "run", "--out", "x.npz"],
    ["interpolate", "run", "--out", "x.png"],
    ["traverse", "run", "--out", "x.png"],
    ["export", "run", "x.safetensors"],
    ["train", "--out", "run", "--resume", "--train.epochs", 9],
)
STRANGE = [value for name, value in globals().items() if name.startswith("by_")]


@pytest.mark.parametrize("strange", STRANGE, ids=lambda strange: strange.__name__)
def test_code_that_no_training_of_ones_own_has_put_there_is_run_by_no_command(
    mine, tmp_path, monkeypatch, capsys, ran, strange
):
    place, names = strange(mine, tmp_path), own_parts.names_in(read_config(mine))
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    for arguments in COMMANDS if strange in (by_path, by_copy) else (COMMANDS[0], COMMANDS[-1]):
        code, said = outcome_of(capsys, *arguments)
        assert (code, len(said.splitlines())) == (2, 1)
        assert said.startswith("vae-jax: error: run: expected code that your own training has put there; found ")
        assert names[0] in said or str(tmp_path / names[0]) in said
        assert f"{place}, and if you trust it use {FLAG}" in said
    for function, arguments in ((load, ()), (export, (tmp_path / "x.safetensors",))):
        assert refused(function, mine, *arguments).startswith(f"{mine}: expected code that your own training has put")
    assert not ran.exists()
    assert snapshot(tmp_path) == before
    assert used(mine, trust_code=True).endswith(names[0].rpartition(":")[2])
    if "e1" not in str(place) and "subprocess" not in str(place):
        code, said = outcome_of(capsys, "evaluate", "run", FLAG)
        assert "found none; has its first epoch finished?" in said.splitlines()[-1]  # it is opened


def test_every_command_that_opens_a_run_can_be_said_to_trust_it():
    known = set()
    for name, verb in cli.VERBS.items():
        parser = Parser(exit_on_error=False)
        verb.options(parser)
        known |= {name} if FLAG in parser.format_help() else set()
    assert set(cli.VERBS) - known == {
        "import",
        "compare",
        "completion",
        "configs",
        "show",
        "report",
    }  # which open no run, or run no code of it


def test_a_sweeps_code_is_not_run_either(tmp_path, monkeypatch, capsys, ran):
    plan = make_sweep(Config(), 2, [f"objective.name=vae,{evil(tmp_path / 'evil.py')}:bound"])
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text(specification(plan))
    code, said = outcome_of(capsys, "sweep", "--out", tmp_path / "sweep", "--resume")
    assert (code, len(said.splitlines())) == (2, 1)
    assert f"{tmp_path}/sweep: expected code that your own training has put there; found {tmp_path}/evil.py" in said
    assert not ran.exists()
    opened = []
    monkeypatch.setattr(
        "vae_jax.sweeps.plan.check_sweep_folder", lambda *_: opened.append(1) or exec("raise KeyboardInterrupt")
    )
    assert outcome_of(capsys, "sweep", "--out", tmp_path / "sweep", "--resume", FLAG)[0] == 130
    assert opened


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['touch ran']", "!!python/name:os.system ''"])
def test_a_configuration_builds_no_objects(mine, tmp_path, monkeypatch, tag):
    monkeypatch.chdir(tmp_path)
    (mine / "config.yaml").write_text(f"seed: {tag}\n")
    assert "expected plain options by section" in refused(load, mine, trust_code=True)
    assert not (tmp_path / "ran").exists()


def test_a_pipe_among_the_copies_does_not_make_one_wait(mine, tmp_path):
    (mine / "code" / "mine.py").unlink()
    os.mkfifo(mine / "code" / "mine.py")
    (tmp_path / "mine.py").unlink()
    os.mkfifo(tmp_path / "mine.py")
    assert used(mine) == f"{mine}/code/mine.py:bound"
    assert "expected a file; found a named pipe" in refused(registry.lookup, {}, used(mine), "objective.name", ("a",))
    (mine / "code" / "signature.json").unlink()
    os.mkfifo(mine / "code" / "signature.json")
    assert f"{mine}/code/signature.json: expected a file; found a named pipe" in refused(used, mine)


# What is the user's word


def test_what_is_ones_own_goes_on_without_a_word(mine, tmp_path):
    assert used(mine) == f"{tmp_path}/mine.py:bound"
    shutil.move(mine, tmp_path / "moved")
    (tmp_path / "mine.py").write_text("changed")
    assert used(tmp_path / "moved") == f"{tmp_path}/moved/code/mine.py:bound"
    shutil.copytree(tmp_path / "moved", tmp_path / "copied")
    assert used(tmp_path / "copied") == f"{tmp_path}/copied/code/mine.py:bound"


def test_what_a_user_names_is_the_users_word_but_for_copies(mine, tmp_path):
    (mine / "code" / "signature.json").unlink()
    name = f"{tmp_path}/mine.py:bound"
    assert used(mine, users=[name]) == name
    assert "signature.json" in refused(used, mine)
    again = tmp_path / "again.py"
    again.write_text(MINE)  # is known by its content
    assert own_parts.kept([f"{again}:bound"], mine, users=[f"{again}:bound"]) == {f"{again}:bound": name}
    (tmp_path / "mine.py").write_text("changed")
    assert f"read {mine}/code/mine.py" in refused(used, mine, users=[name])


def test_what_is_continued_on_the_users_word_is_the_users_own(mine):
    (mine / "code" / "signature.json").unlink()
    names = own_parts.names_in(read_config(mine))
    assert own_parts.keep(own_parts.sources(names), names, mine) == ""
    assert used(mine) == names[0]


def test_a_copy_that_is_changed_after_it_was_looked_at_is_not_run(mine, tmp_path, ran):
    (tmp_path / "mine.py").unlink()
    name = used(mine)
    evil(mine / "code" / "mine.py")
    message = refused(registry.lookup, {}, name, "objective.name", ("a",))
    assert "expected it as it was when its run was opened; it has changed since" in message
    assert not ran.exists()
    registry.lookup({}, used(mine, trust_code=True), "objective.name", ("a", "b", "c", "d"))
    assert ran.exists()


def test_a_module_is_looked_for_in_the_working_folder_only_where_it_was(tmp_path, monkeypatch, ran):
    for folder in ("project", "elsewhere"):
        (tmp_path / folder / "mine_of_trust").mkdir(parents=True)
        (tmp_path / folder / "mine_of_trust" / "net.py").write_text(MINE)  # the package is a namespace
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path / "project")
    folder, name = begin(tmp_path / "run", "mine_of_trust.net:bound"), "mine_of_trust.net:bound"
    assert used(folder) == name
    monkeypatch.chdir(tmp_path / "elsewhere")
    evil(tmp_path / "elsewhere" / "mine_of_trust" / "__init__.py")
    message = refused(used, folder)
    project, elsewhere = (tmp_path / each / "mine_of_trust" / "net.py" for each in ("project", "elsewhere"))
    assert f"it was found in the working folder, not in {project} as then); read the module " in message
    assert str(elsewhere) in message
    assert used(folder, users=[name]) == name
    monkeypatch.chdir(tmp_path)
    assert "found none called mine_of_trust.net" in refused(used, folder)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "elsewhere")])  # as PYTHONPATH does
    assert used(folder) == name
    assert not ran.exists()
    assert "mine_of_trust" not in sys.modules


def test_a_module_is_found_without_being_imported(tmp_path, monkeypatch, ran):
    evil(tmp_path / "e2" / "__init__.py")
    deep = evil(tmp_path / "e2" / "plain" / "deep" / "evil.py")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert registry.locate("e2.plain.deep.evil") == registry.Place(deep, False)
    assert registry.locate("e2") == registry.Place(tmp_path / "e2" / "__init__.py", False)
    assert registry.locate("e2.plain") == registry.Place(None, False)
    assert registry.locate("json.decoder") == registry.Place(Path(json.decoder.__file__), False)
    assert registry.locate("sys") == registry.Place(None, False)
    for name in ("e2.none", "e2.none.evil", "", ".", "e2.", "../e2", "e2/plain"):
        assert registry.locate(name) is None
    assert not ran.exists()
    monkeypatch.chdir(tmp_path / "e2")
    shutil.rmtree(tmp_path / "e2")  # a working folder that there is no more
    assert registry.locate("e3") is None


# The signature


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A state folder of another user's, or of this user's on another machine."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "vae_jax"


def test_a_secret_is_the_users_alone(state):
    signed, why = signature.sign(b"content")
    assert why == ""
    assert signature.is_own(b"content", signed)
    assert not signature.is_own(b"contents", signed)
    assert not signature.is_own(b"content", "ü" + signed[1:])
    secret = state / "secret"
    assert [oct(path.stat().st_mode & 0o777) for path in (state, secret)] == ["0o700", "0o600"]
    assert [path.name for path in state.iterdir()] == ["secret"]
    for spoil, said in (
        (lambda: secret.chmod(0o640), "nobody else can read"),
        (lambda: (secret.chmod(0o600), secret.write_bytes(b"")), "expected 32 bytes"),
        (lambda: (secret.unlink(), secret.mkdir()), "Is a directory"),
        (secret.rmdir, f"there is no {secret}"),
    ):
        spoil()
        with pytest.raises(signature.NoSecretError, match=said):
            signature.is_own(b"content", signed)
    if os.geteuid() == 0:
        signature.sign(b"content")
        os.chown(secret, 1234, -1)
        with pytest.raises(signature.NoSecretError, match="of this user's"):
            signature.is_own(b"content", signed)


def test_of_several_who_need_a_secret_first_all_have_the_same(state):
    together, signed = threading.Barrier(8), []

    def one():
        together.wait()
        signed.append(signature.sign(b"content"))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(signed) == 8
    assert len(set(signed)) == 1


def test_anothers_signature_is_none(mine, state):
    assert f"there is no {state}/secret" in refused(used, mine)
    signature.sign(b"")
    assert "signature.json is not of this user's and of this content" in refused(used, mine)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "[" * 9999, '{"names": 3, "places": {}, "signature": ""}', "0" * (1 << 21)]
)
def test_a_signature_that_is_damaged_is_none(mine, content):
    (mine / "code" / "signature.json").write_text(content)
    assert "signature.json" in refused(used, mine)


def test_without_a_home_folder_the_word_is_needed_and_that_is_said(tmp_path, monkeypatch):
    """But by the process that has trained."""
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setenv("HOME", "/dev/null")
    (tmp_path / "mine.py").write_text(MINE)
    folder, names = tmp_path / "run", [f"{tmp_path}/mine.py:bound"]
    folder.mkdir()
    rename(folder, names[0])
    line = own_parts.keep(own_parts.sources(names), names, folder)
    assert line.startswith("using what is trained here will need trust_code=True to run its code: /dev/null/")
    assert used(folder) == names[0]
    monkeypatch.setattr(signature, "_OF_THIS_PROCESS", b"another")
    assert "(there is no /dev/null/" in refused(used, folder) or "Not a directory" in refused(used, folder)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert "(there is no home folder (HOME) to keep a secret in)" in refused(used, folder)
    assert used(folder, trust_code=True) == names[0]


# The working folder


def test_the_working_folder_is_not_looked_at_for_packages(tmp_path, ran):
    """As `vae-jax` does not, so `python -m vae_jax`."""
    for name in ("yaml", "matplotlib", "sitecustomize"):
        evil(tmp_path / f"{name}.py")
    command = [sys.executable, "-m", "vae_jax", "evaluate", "--help"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert FLAG in found.stdout
    assert not ran.exists()
