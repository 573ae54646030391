"""Messages name arguments as whoever called spells them: the library as in Python, the command line by its flags."""

import ast
import re
from pathlib import Path

import pytest

import vae_jax
from vae_jax.cli import VERBS, main
from vae_jax.cli.common import flag
from vae_jax.errors import UserError, argument, arguments_spelled
from vae_jax.runs.folder import check_folder

LIBRARY = Path(vae_jax.__file__).parent
OTHERS = {"--file_format", "--data_dir"}  # flags of `tfds build`, which a message names


def sources():
    """The modules outside the command line; config reads its flags, and pages show commands to their readers."""
    others = ("cli", "config", "pages")
    files = [file for file in LIBRARY.rglob("*.py") if file.relative_to(LIBRARY).parts[0] not in others]
    assert len(files) > 50
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}


def test_the_library_names_no_flags():
    for file, tree in sources().items():
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                flags = set(re.findall(r"(?<![\w-])--[a-z_]+", node.value))
                assert flags <= OTHERS, (file, node.lineno)


def test_every_argument_has_its_flag(capsys):
    names = {
        node.args[0].value
        for tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "argument"
        and isinstance(node.args[0], ast.Constant)
    }
    assert {"latent", "resume", "overwrite", "settings"} <= names
    known: set[str] = set()
    for verb in VERBS:
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        known |= set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    for name in names:
        assert flag(name, None) in known, name


def test_an_argument_is_spelled_as_whoever_calls_does():
    assert (argument("resume", True), argument("trust_code", True), argument("latent")) == (
        *("resume=True", "trust_code=True", "latent"),
    )
    with arguments_spelled(flag):
        assert (argument("resume", True), argument("trust_code", True), argument("latent")) == (
            *("--resume", "--trust-code", "--latent"),
        )
        assert (argument("samples", 5), argument("settings")) == ("--nll-samples 5", "--set")
    assert argument("samples", 5) == "samples=5"
    with pytest.raises(KeyError), arguments_spelled(flag):
        raise KeyError
    assert argument("samples") == "samples"


def test_the_same_refusal_in_python_and_on_the_command_line(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    begin = f"{tmp_path}: there is a run already; "
    with pytest.raises(UserError) as refused:
        check_folder(tmp_path, False, False)
    assert str(refused.value) == f"{begin}resume=True continues it, overwrite=True deletes it first"
    assert main(["train", "--out", str(tmp_path)]) == 2
    line = f"vae-jax: error: {begin}--resume continues it, --overwrite deletes it first\n"
    assert capsys.readouterr().err == line
    with pytest.raises(UserError, match="resume=True continues it"):  # spelled so again
        check_folder(tmp_path, True, True)
