"""Runs on the Hugging Face Hub: the library's own client against a server in its place, with a folder of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hub_server
import jax
import numpy as np
import pytest
from run_fixtures import snapshot

import vae_jax
from vae_jax import cli
from vae_jax.config import Config, adapted, load_config
from vae_jax.errors import UserError
from vae_jax.files import folders
from vae_jax.interop.push import in_bytes, listing, public_place, push
from vae_jax.runs import hub
from vae_jax.runs.folder import absolute_start, check_start, read_config
from vae_jax.runs.overview import public_options
from vae_jax.runs.reading import load

LAYERS = ["--model.network=mlp", "--model.layers=[4]", "--model.latent=2"]
SMALL = ["--data.source=digits", "--data.image_size=8", *LAYERS, "--train.batch_size=100", "--output.figure_images=4"]
OBJECTIVE = """
import os, pathlib
from vae_jax.objectives.vae import VAEOptions
from vae_jax.objectives.vae import vae as ours

with pathlib.Path(os.environ["RAN"]).open("a") as ran:
    ran.write("once ")


def mine(key, model, images, options: VAEOptions):
    return ours(key, model, images, options)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs, whose best one is the second."""
    folder = tmp_path_factory.mktemp("hub") / "digits"
    assert cli.main(["train", f"--out={folder}", *SMALL, "--train.epochs=2"]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of it, as `digits` in the working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "digits")
    return Path("digits")


@pytest.fixture
def server(tmp_path):
    with hub_server.serving(tmp_path / "hub") as server:
        yield server
    folders.copies.clear()


def said(capsys, *arguments, code=0):
    """A command's output; of a refused one its line."""
    capsys.readouterr()
    ended = cli.main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    assert ended == code, err
    if code:
        assert err.splitlines()[-1:] == [line for line in err.splitlines() if line.startswith("vae-jax: error")], err
        return err.splitlines()[-1] + "\n"
    return out


def texts(folder):
    return b"".join(path.read_bytes() for path in hub_server.files_in(folder))


# A run there and back


def test_what_is_pushed_is_what_a_run_needs_and_its_card(run, server, capsys):
    (run / "notes.txt").write_text("mine")
    (run / "logs").mkdir()
    (run / "report.html").write_text("mine")
    lines = said(capsys, "push", run, "me/digits", "--licence", "mit").splitlines()
    assert lines[-1] == f"{server.url}/me/digits"
    there = server.folder("me/digits")
    names = {path.relative_to(there).as_posix() for path in hub_server.files_in(there)}
    (step,) = {name.split("/")[1] for name in names if name.startswith("checkpoints/")}
    assert step == "30"
    assert {name for name in names if not name.startswith("checkpoints/")} == {
        *(".gitattributes", "README.md", "config.yaml", "data.json", "metrics.jsonl", "summary.json"),
        *(f"figures/{name}.png" for name in ("latent_plane", "loss", "reconstructions_epoch_0002", "samples")),
    }
    for name in names - {".gitattributes", "README.md", f"checkpoints/{step}/checkpoint.json"}:
        assert (there / name).read_bytes() == (run / name).read_bytes(), name
    assert [line.split(":")[0] for line in lines[:-1]] == [
        *("  README.md", "  checkpoints", "  config.yaml", "  data.json", "  figures", "  metrics.jsonl"),
        *("  summary.json", "  in all"),
    ]
    size = sum(path.stat().st_size for path in hub_server.files_in(there)) - len("*.bin filter=lfs\n")
    assert lines[-2] == f"  in all: {in_bytes(size)}, {len(names) - 1} files"
    assert [path for path in server.asked if path.startswith("/lfs/")]  # large files go where they belong
    card = (there / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: vae_jax\n")
    assert "license: mit\n" in card
    assert "# digits\n" in card
    for line in ("sample hub:me/digits --out samples.png", "train --from hub:me/digits --config here/config.yaml"):
        assert f"vae-jax {line}" in card
    assert "--trust-code" not in card


def test_a_run_from_there_gives_the_same_loss_to_the_last_digit(run, server, capsys):
    said(capsys, "push", run, "me/digits")
    here = said(capsys, "evaluate", run, "--json", "--latent", "mean")
    assert said(capsys, "evaluate", "hub:me/digits", "--json", "--latent", "mean") == here
    assert json.loads(here)["loss"] > 0
    model, copy = load(run), vae_jax.load_run("hub:me/digits")
    jax.tree.map(np.testing.assert_array_equal, copy.state, model.state)
    assert copy.history == model.history


def test_a_training_begins_with_the_weights_there(run, server, capsys):
    said(capsys, "push", run, "me/digits")
    (commit,) = (server.heads[name] for name in ("me/digits",))
    for start, out in ((run, "from_here"), ("hub:me/digits", "from_there")):
        lines = said(capsys, "train", "--out", out, *SMALL, "--train.epochs=1", "--from", start)
    assert f"from hub:me/digits@{commit}\n" in lines
    assert read_config(Path("from_there")).train.start == f"hub:me/digits@{commit}"
    first, second = (load(out) for out in ("from_here", "from_there"))
    jax.tree.map(np.testing.assert_array_equal, first.state, second.state)
    fresh = read_config(run)
    assert first.history[0]["train_loss"] < load(run).history[0]["train_loss"]
    assert fresh.train.start is None
    asked = len(server.asked)
    said(capsys, "train", "--out", "from_there", "--resume", "--train.epochs=2")
    assert len(server.asked) == asked  # it has all that it needs


def test_a_later_push_leaves_nothing_of_the_earlier_run_but_what_is_no_runs(run, server, capsys):
    said(capsys, "push", run, "me/digits")
    earlier = server.heads["me/digits"]
    (server.folder("me/digits") / "paper.pdf").write_text("mine")
    shutil.rmtree(run / "checkpoints" / "30")
    (run / "figures" / "samples.png").unlink()
    said(capsys, "push", run, "me/digits", "--checkpoint", "best")
    there = server.folder("me/digits")
    assert there.name != earlier
    assert (there / "paper.pdf").exists()
    assert [path.name for path in (there / "checkpoints").iterdir() if hub_server.files_in(path)] == ["15"]
    assert not (there / "figures" / "samples.png").exists()
    assert "After epoch 1:" in (there / "README.md").read_text()
    assert "After epoch 2:" in (server.folder("me/digits", earlier) / "README.md").read_text()
    newest, before = (load(f"hub:me/digits{revision}") for revision in ("", f"@{earlier}"))
    assert (len(newest.history), len(before.history)) == (1, 2)


def test_a_commit_that_comes_between_is_not_overwritten(run, server, capsys, monkeypatch):
    said(capsys, "push", run, "me/digits")
    commit = server.commit

    def commit_after_another(name, lines):
        commit(name, [{"key": "file", "value": {"path": "other.txt", "content": ""}}])
        return commit(name, lines)

    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text() + "\n")
    monkeypatch.setattr(server, "commit", commit_after_another)
    assert "A commit has happened since" in said(capsys, "push", run, "me/digits", code=2)


def test_a_prior_goes_with_its_run(run, server, capsys):
    said(capsys, "train-prior", run, "--train.epochs=1")
    here = said(capsys, "evaluate", run, "--json")
    assert f"digits/prior: train.start is only digits there, not {run.absolute()}" in said(
        capsys, "push", run, "me/digits"
    )
    assert said(capsys, "evaluate", "hub:me/digits", "--json") == here
    assert json.loads(here)["prior"] == "flow"
    assert str(run.parent.absolute()).encode() not in texts(server.folder("me/digits"))
    shutil.rmtree(run / "prior" / "checkpoints")
    why = "digits/prior: expected a run with checkpoints, found none"
    assert f"the prior in digits/prior is left out: {why}" in said(capsys, "push", run, "me/digits")
    assert not hub_server.files_in(server.folder("me/digits") / "prior")


# What stays here


def test_no_place_of_this_machine_goes_there(tmp_path, server, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret" / "pets").mkdir(parents=True)
    from PIL import Image

    for number in range(12):
        levels = np.random.RandomState(number).randint(0, 256, (8, 8), np.uint8)
        Image.fromarray(levels).save(tmp_path / "secret" / "pets" / f"{number}.png")
    (tmp_path / "secret" / "pets" / "bad.png").write_bytes(b"\x89PNG")
    (tmp_path / "secret" / "mine.py").write_text(OBJECTIVE)
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={tmp_path}/secret".strip())
    own = ["--data.source=folder", "--data.path=secret/pets", "--data.skip_bad=true", "--data.cache_dir=secret/cache"]
    own += ["--objective.name=secret/mine.py:mine", *LAYERS]
    said(capsys, "train", "--out=run", *own, "--train.epochs=1", "--data.image_size=8", "--data.channels=1")
    said(capsys, "train", "--out=again", "--from=run", *own, "--train.epochs=1", "--data.image_size=8")
    place, parts = str(tmp_path), ("config.yaml", "summary.json", "code/sources.json", "checkpoints/1/checkpoint.json")
    for part in parts:  # all of these name it here
        assert place in (tmp_path / "again" / part).read_text(), part
    lines = said(capsys, "push", "again", "me/pets")
    assert place.encode() not in texts(server.folder("me/pets"))
    assert f"again: data.cache_dir is left out there, not {tmp_path}/secret/cache\n" in lines
    assert f"again: data.path is only pets there, not {tmp_path}/secret/pets\n" in lines
    assert f"again: train.start is only run there, not {tmp_path}/run\n" in lines
    there = server.folder("me/pets")
    assert not (there / "code" / "signature.json").exists()
    assert json.loads((there / "summary.json").read_text())["skipped_images"][0].startswith("bad.png: ")
    config = read_config(there)
    assert (config.objective.name, config.data.path) == ("code/mine.py:mine", "pets")
    # Its code is run for nobody who has not said so, not even for whoever has pushed it.
    (tmp_path / "ran").unlink()
    line = said(capsys, "evaluate", "hub:me/pets", "--data.path=secret/pets", code=2)
    assert "expected code that your own training has put there; found code/mine.py:mine" in line
    assert "code/mine.py, and if you trust it use --trust-code" in line
    begin = ["train", "--out=on", *own, "--train.epochs=1", "--data.image_size=8", "--from=hub:me/pets"]
    assert "if you trust it use --trust-code" in said(capsys, *begin, code=2)
    assert not (tmp_path / "on").exists()
    assert not (tmp_path / "ran").exists()
    assert "beginning with" in said(capsys, *begin, "--trust-code")
    shutil.rmtree(tmp_path / "secret" / "cache")
    (tmp_path / "secret" / "mine.py").unlink()  # the copy is used
    found = said(capsys, "evaluate", "hub:me/pets", "--data.path=secret/pets", "--trust-code", "--json")
    expected = json.loads((tmp_path / "again" / "metrics.jsonl").read_text())["test_loss"]
    assert json.loads(found)["loss"] == expected
    assert "--trust-code" in (there / "README.md").read_text()


def test_a_path_is_left_out_or_cut_to_its_name():
    places = {"data.path": "/home/me/pets", "data.manual_dir": "/x", "data.cache_dir": "/x", "train.start": "/runs/a"}
    hidden = {name: public_place(name, value) for name, value in places.items()}
    assert hidden == {"data.path": "pets", "data.manual_dir": None, "data.cache_dir": None, "train.start": "a"}
    assert public_place("train.start", "hub:me/digits@v1") == "hub:me/digits@v1"
    assert public_place("data.path", None) is None
    assert public_place("data.name", "/x") == "/x"
    changed = {"train.start": "hub:me/digits@v1", "data.source": "folder", "data.path": "/home/me/pets"}
    config = adapted(Config(), **changed)
    options = public_options(config)
    assert (options["train.start"], options["data.path"]) == ("hub:me/digits@v1", "PATH")


def test_a_run_whose_code_has_no_copy_is_not_pushed(run, server, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    (tmp_path / "mine.py").write_text(OBJECTIVE)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("name: vae\n", "name: mine.py:mine\n"))
    line = said(capsys, "push", run, "me/digits", "--trust-code", code=2)
    assert line == "vae-jax: error: digits/code: expected a copy of mine.py, for others; found none\n"
    assert not server.heads


# Copies stay as they are


def test_nothing_is_written_into_a_copy(run, server, capsys, tmp_path):
    said(capsys, "push", run, "me/digits")
    said(capsys, "evaluate", "hub:me/digits")
    before = snapshot(tmp_path / "cache")
    commit = server.heads["me/digits"]
    refused = f"vae-jax: error: hub:me/digits@{commit}: expected a folder to write into; found an address"
    for verb, name in (("sample", "s.png"), ("encode", "z.npz"), ("report", "r.html"), ("explore", "e.html")):
        line = said(capsys, verb, "hub:me/digits", code=2)
        assert line == f"{refused}, whose copy here stays as it is; --out names another place\n"
        more = ["--no-open"] if verb == "explore" else []
        assert said(capsys, verb, "hub:me/digits", "--out", name, *more).splitlines()[-1].startswith(name)
    assert "expected a run folder of this machine" in said(capsys, "train-prior", "hub:me/digits", code=2)
    for command in (["train", *SMALL, "--out"], ["import", "x.safetensors"]):
        assert "expected a folder for the run; found an address" in said(capsys, *command, "hub:me/digits", code=2)
    assert f"hub:me/digits@{commit[:8]} " in said(capsys, "show", "hub:me/digits", run)
    assert f"<h1>digits@{commit[:8]}</h1>" in (tmp_path / "r.html").read_text()
    assert "beside its folder" not in (tmp_path / "r.html").read_text()
    assert "m.zip" in said(capsys, "export", "hub:me/digits", "m.zip", "--to", "stablehlo")
    assert snapshot(tmp_path / "cache") == before
    assert said(capsys, "push", "hub:me/digits", "me/again").endswith("/me/again\n")
    texts_again = texts(server.folder("me/again")).replace(b"me/again", b"me/digits").replace(b"# again", b"# digits")
    assert texts_again == texts(server.folder("me/digits"))


def test_only_a_runs_files_are_downloaded(run, server, capsys):
    said(capsys, "push", run, "me/digits")
    (server.folder("me/digits") / "huge.bin").write_bytes(b"0" * 100)
    folder = hub.downloaded("hub:me/digits")
    assert {path.name for path in folder.iterdir()} == {
        *("checkpoints", "config.yaml", "data.json", "figures", "metrics.jsonl", "summary.json")
    }


def test_an_earlier_copy_is_used_where_the_hub_is_silent_and_this_is_said(run, server, capsys, monkeypatch):
    said(capsys, "push", run, "me/digits")
    commit, constants = server.heads["me/digits"], pytest.importorskip("huggingface_hub.constants")
    here = said(capsys, "evaluate", "hub:me/digits", "--json")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert cli.main(["evaluate", "hub:me/digits", "--json"]) == 0
    out, err = capsys.readouterr()
    assert out == here
    assert "hub:me/digits: no answer of the hub (" in err
    assert f"the copy of commit {commit} is used, as it was downloaded earlier\n" in err
    assert said(capsys, "show", f"hub:me/digits@{commit}")
    for name, verb in (("other", ["evaluate", "hub:me/other"]), ("digits", ["push", run, "me/digits"])):
        assert said(capsys, *verb, code=2).startswith(f"vae-jax: error: hub:me/{name}: expected an answer of the hub")


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["show", "hub:me/nothing"],
            "hub:me/nothing: expected a repository that is there and that your token may",
        ),
        (["show", "hub:me/empty@v9"], "expected a branch, a tag or a commit of this repository; found Invalid rev id"),
        (["show", "hub:me/empty"], "hub:me/empty: expected a run, with a config.yaml, in this repository; found none"),
        (["show", "hub:digits"], "expected hub:OWNER/NAME or hub:OWNER/NAME@REVISION; found 'hub:digits'"),
        (
            ["show", "hub:me/di--gits"],
            "expected hub:OWNER/NAME or hub:OWNER/NAME@REVISION; found 'hub:me/di--gits'",
        ),
        (["train", "--out=x", *SMALL, "--from=hub:me/nothing"], "hub:me/nothing: expected a repository that is there"),
        (["push", "digits", "digits"], "expected OWNER/NAME, a repository on the hub; found 'digits'"),
        (["push", "digits", "me/digits@main"], "expected OWNER/NAME, a repository on the hub; found 'me/digits@main'"),
        (["push", "digits", "you/digits"], "found You don't have the rights to create a model under you"),
        (
            ["push", "digits", "me/empty", "--private"],
            "expected a private repository, for --private; found a",
        ),
        (["push", "digits", "me/x", "--licence", "my own"], "--licence: expected an identifier as apache-2.0 or mit"),
        (["push", "digits", "me/x", "--checkpoint", "first"], "--checkpoint: expected latest or best; found 'first'"),
        (["push", "nowhere", "me/x"], "nowhere: expected a run folder, found no such folder"),
    ],
)
def test_what_is_refused_is_said_in_one_line(run, server, capsys, arguments, message):
    pytest.importorskip("huggingface_hub").HfApi().create_repo("me/empty")
    (server.folder("me/empty") / "notes.txt").write_text("no run")
    before = dict(server.heads)
    assert message in said(capsys, *arguments, code=2)
    assert server.heads == before
    assert not Path("x").exists()


def test_tokens(run, server, capsys, monkeypatch):
    for _ in range(2):
        lines = said(capsys, "push", run, "me/digits", "--private").splitlines()
        assert lines[-1] == f"{server.url}/me/digits"
    assert server.private == {"me/digits"}
    monkeypatch.delenv("HF_TOKEN")
    log_in = "`hf auth login` or HF_TOKEN gives a token"
    assert log_in in said(capsys, "show", "hub:me/digits", code=2)
    line = said(capsys, "push", run, "me/digits", code=2)
    assert line == f"vae-jax: error: hub:me/digits: expected a token of the hub; found none; {log_in}\n"
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    for command in (["show", "hub:me/digits"], ["push", run, "me/digits"]):
        line = said(capsys, *command, code=2)
        assert log_in in line
        assert "Invalid credentials" in line


def test_an_upload_that_fails_says_why(run, server, capsys, monkeypatch):
    def refuse(*_):
        raise hub_server.Refusal(507, "the disk is full")

    monkeypatch.setattr(hub_server.Answer, "_large", refuse)
    line = said(capsys, "push", run, "me/digits", code=2)
    assert "hub:me/digits: expected an answer of the hub; found Error while uploading" in line
    assert "the disk is full" in line


def test_a_cache_that_cannot_be_written_is_what_is_said(run, server, capsys, monkeypatch, tmp_path):
    said(capsys, "push", run, "me/digits")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(pytest.importorskip("huggingface_hub.constants"), "HF_HUB_CACHE", str(tmp_path / "file"))
    line = said(capsys, "show", "hub:me/digits", code=2)
    assert line.startswith(f"vae-jax: error: {tmp_path}/file")
    assert "Not a directory" in line or "File exists" in line


def test_without_the_package_a_line_says_how_to_install_it(run, capsys, monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    line = "expected huggingface_hub to be installed; found no such package; pip install 'vae_jax[hub]'\n"
    for command in (
        ["push", run, "me/digits"],
        ["evaluate", "hub:me/digits"],
        ["train", "--out=x", *SMALL, "--from=hub:me/digits"],
    ):
        assert said(capsys, *command, code=2) == f"vae-jax: error: hub:me/digits: {line}"


def test_nothing_of_it_is_imported_where_no_run_is_on_the_hub(run):
    code = (
        f"import sys\nfrom vae_jax import cli\nassert cli.main(['evaluate', {str(run)!r}]) == 0\n"
        "assert not [name for name in sys.modules if name.startswith(('huggingface_hub', 'vae_jax.interop.push'))]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# Addresses


def test_addresses(tmp_path):
    assert hub.address_of("hub:me/digits-vae.2") == ("me/digits-vae.2", None)
    assert hub.address_of("hub:me/digits@refs/pr/1") == ("me/digits", "refs/pr/1")
    assert [hub.is_address(each) for each in ("hub:a/b", Path("hub:a/b"), "./hub:a/b", "runs/hub")] == [
        *(True, True, False, False)
    ]
    for wrong in ("hub:", "hub:a", "hub:a/b/c", "hub:/b", "hub:a/b c", "hub:../b", "hub:a/.."):
        with pytest.raises(UserError, match="expected hub:OWNER/NAME"):
            hub.address_of(wrong)
    assert hub.downloaded(tmp_path) == tmp_path
    pinned = f"hub:me/digits@{'0123456789' * 4}"
    config = load_config(**{"train.start": pinned})
    assert absolute_start(config) == config  # asks nobody
    check_start(pinned, Path())  # lies in no folder that is deleted
    assert absolute_start(load_config(**{"train.start": "a"})).train.start == str(Path("a").absolute())


def test_sizes_in_words(tmp_path):
    (tmp_path / "x").write_bytes(b"0" * 2_500_000)
    lines = listing({"a": b"12", "c/d/1": tmp_path / "x", "c/2": b"1" * 100_000})
    assert lines == ["a: 0.0 kB", "c: 2.6 MB, 2 files", "in all: 2.6 MB, 3 files"]


def test_the_library_says_arguments_as_python_does(run, server):
    push(run, "me/digits", report=lambda line: None)
    with pytest.raises(UserError, match="private=True"):
        push(run, "me/digits", private=True, report=lambda line: None)
    folder = hub.downloaded("hub:me/digits")
    with pytest.raises(UserError, match="; folder names another place"):
        folders.check_writable(folder / "figures")
