"""The scripts of `vae-jax completion`, in the shells that are installed."""

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import time

import pytest

from vae_jax.cli import VERBS, main
from vae_jax.cli.completion import SHELLS, all_commands
from vae_jax.config import shipped
from vae_jax.config.parts import EXTENSIBLE, registry_of


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The scripts' paths by shell, as the command prints them, and a folder of runs and configurations to complete."""
    folder = tmp_path_factory.mktemp("completion")
    for name in ("runs/first", "runs/second", "a folder"):
        (folder / name).mkdir(parents=True)
    (folder / "own.yaml").touch()
    paths = {}
    with pytest.MonkeyPatch.context() as patch:
        for shell in SHELLS:
            paths[shell] = folder / f".completion.{shell}"
            with open(paths[shell], "w", encoding="utf-8") as file:
                patch.setattr("sys.stdout", file)
                assert main(["completion", shell]) == 0
    return paths


def in_bash(path, *words):
    """What bash completes for the last of these words."""
    if not shutil.which("bash"):
        pytest.skip("needs bash")
    program = f"""
        source {path.name}
        COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1} COMPREPLY=()
        $(complete -p vae-jax | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", program], cwd=path.parent, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


def in_fish(path, *words):
    """What fish completes for the last of these words."""
    if not shutil.which("fish"):
        pytest.skip("needs fish, which is no part of a usual machine")
    line = shlex.join(words[:-1]) + f" {words[-1]}"
    program = f"source {path.name}; complete -C {shlex.quote(line)}"
    done = subprocess.run(["fish", "-N", "-c", program], cwd=path.parent, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [line.partition("\t")[0].rstrip("/") for line in done.stdout.splitlines()]


CASES = [
    (["tr"], ["train", "train-prior", "traverse"]),
    (["train", "--objective.n"], ["--objective.name"]),
    (["train", "--config", "ar"], ["article"]),
    (["train", "--config", "o"], ["own.yaml"]),
    (["train", "--config", "digits", "--objective.name", "iw"], ["iwae"]),
    (["train", "--model.batch_norm", "t"], ["true"]),
    (["train", "--log", "te"], ["tensorboard"]),
    (["evaluate", "runs/f"], ["runs/first"]),
    (["evaluate", "runs/first", "--chec"], ["--checkpoint"]),
    (["evaluate", "runs/first", "--checkpoint", ""], ["best", "latest"]),
    (["evaluate", "runs/first", "--split", "v"], ["validation"]),
    (["report", "runs/first", "runs/s"], ["runs/second"]),
    (["export", "runs/first", "model.onnx", "--to", "o"], ["onnx"]),
    (["sample", "runs/first", "--from", "g"], ["gmm"]),
    (["compare", "--levels", "tr"], ["trajectory"]),
    (["configs", "hand"], ["handwriting"]),
    (["completion", ""], sorted(SHELLS)),
]


@pytest.mark.parametrize(("words", "expected"), CASES, ids=[" ".join(words) for words, _ in CASES])
def test_bash_and_fish_complete(scripts, words, expected):
    assert sorted(in_bash(scripts["bash"], "vae-jax", *words)) == expected
    if shutil.which("fish"):
        assert sorted(in_fish(scripts["fish"], "vae-jax", *words)) == expected


def test_bash_completes_every_command_and_every_part(scripts):
    assert set(in_bash(scripts["bash"], "vae-jax", "")) == set(VERBS)
    assert set(shipped()) <= set(in_bash(scripts["bash"], "vae-jax", "train", "--config", ""))
    for option in EXTENSIBLE:
        offered = in_bash(scripts["bash"], "vae-jax", "train", f"--{option}", "")
        assert set(registry_of(option.partition(".")[0])) | {"own.yaml"} <= set(offered)  # or a file of one's own


def test_a_prior_is_trained_with_options_of_the_prior_alone(scripts):
    options = in_bash(scripts["bash"], "vae-jax", "train-prior", "runs/first", "--")
    assert "--prior.name" in options
    assert "--model.latent" not in options


def test_zsh_completes(scripts):
    """At a terminal, where TAB completes a command, an option, its value and a folder."""
    if not shutil.which("zsh"):
        pytest.skip("needs zsh, which is no part of a usual machine")
    folder = scripts["zsh"].parent
    (folder / "functions").mkdir(exist_ok=True)
    shutil.copy(scripts["zsh"], folder / "functions" / "_vae-jax")
    begin = "fpath+=$PWD/functions; autoload -U compinit; compinit -u -D; vae-jax() { print RAN: $* }; PS1='ready> '\n"
    typed = "vae-jax conf\thandw\t\n", "vae-jax evaluate runs/f\t --checkp\tb\t\n"
    expected = "configs handwriting", "evaluate runs/first --checkpoint best"
    terminal, inner = pty.openpty()
    streams = {"stdin": inner, "stdout": inner, "stderr": inner}
    environment = {**os.environ, "TERM": "dumb"}
    process = subprocess.Popen(["zsh", "-f", "-i"], **streams, cwd=folder, env=environment, start_new_session=True)
    os.close(inner)
    said = ""
    for line, shown in zip((begin, *typed), ("ready> ", *(f"RAN: {each}" for each in expected)), strict=True):
        os.write(terminal, line.encode())
        until = time.monotonic() + 60
        while shown not in said and time.monotonic() < until:
            if select.select([terminal], [], [], 1)[0]:
                said += re.sub(r"\s+", " ", os.read(terminal, 1 << 16).decode(errors="replace"))
        assert shown in said, said
    os.write(terminal, b"exit\n")
    process.wait(60)
    os.close(terminal)


def test_every_option_of_help_is_completed(capsys):
    commands = next(action for action in all_commands(VERBS)._actions if action.dest == "==SUPPRESS==").choices
    assert set(commands) == set(VERBS)
    for verb in VERBS:
        with pytest.raises(SystemExit):
            main([verb, "--help-all" if "--help-all" in commands[verb]._option_string_actions else "--help"])
        shown = set(re.findall(r"^  (?:-\w, )?(--?[\w.-]+)", capsys.readouterr().out, re.MULTILINE))
        assert shown <= set(commands[verb]._option_string_actions), verb


def test_an_unknown_shell_is_refused(capsys):
    assert main(["completion", "bsh"]) == 2
    assert (
        capsys.readouterr().err
        == "vae-jax: error: SHELL: expected one of bash, zsh, fish; found 'bsh' (did you mean bash?)\n"
    )
