"""Ctrl-C ends a command wherever it falls: with one line, exit code 130 and nothing half-written."""

import gc
import signal
import subprocess
import sys
import time
import weakref
from contextlib import suppress

import pytest

from vae_jax.cli import VERBS, main, train
from vae_jax.files.replace import remove_unfinished, replacing, scratch
from vae_jax.interruption import SAME, Interrupted, Listener, uninterrupted


def press() -> None:
    signal.raise_signal(signal.SIGINT)
    for _ in range(3):  # Python calls the handler between two instructions
        pass


@pytest.fixture(autouse=True)
def heard():
    """Ctrl-C is ignored in what a shell's background job starts, as these tests may be."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Thing:
    pass


def in_a_collection():
    """As jax has one, which it registers when it is imported."""

    def callback(phase: str, info: dict) -> None:
        gc.callbacks.remove(callback)
        press()

    gc.callbacks.append(callback)
    gc.collect()


def in_a_destructor():
    class Ending:
        def __del__(self) -> None:
            press()

    Ending()


def in_the_callback_of_a_reference():
    thing = Thing()
    reference = weakref.ref(thing, lambda _: press())
    del thing
    assert reference() is None


def where_all_is_caught():
    with suppress(BaseException):
        press()


def where_it_becomes_another_error():
    try:
        press()
    except BaseException as error:
        raise RuntimeError("a callback has failed") from error


def where_c_code_prints_it():
    """As numpy's does while it is imported."""
    try:
        press()
    except BaseException as error:
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    sys.excepthook(sys.last_type, sys.last_value, sys.last_traceback)


PLACES = [
    in_a_collection,
    in_a_destructor,
    in_the_callback_of_a_reference,
    where_all_is_caught,
    where_it_becomes_another_error,
    where_c_code_prints_it,
    press,
]


@pytest.mark.parametrize("place", PLACES)
def test_it_is_not_lost(place, monkeypatch, capsys):
    went_on = []

    def run(options):
        place()
        for _ in range(3):
            pass
        went_on.append(place)

    monkeypatch.setitem(VERBS, "sample", VERBS["sample"]._replace(run=run))
    hooks = sys.unraisablehook, sys.excepthook
    assert main(["sample", "some"]) == 130
    assert capsys.readouterr().err == "vae-jax: interrupted\n"
    assert not went_on
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (sys.unraisablehook, sys.excepthook) == hooks


def test_two_signals_at_once_are_one_and_what_is_undone_is_undone_whole():
    undone = []

    def work() -> int:
        try:
            press()
        finally:
            press()
            undone.append(True)
        return 0

    with Listener() as ctrl_c, pytest.raises(Interrupted):
        ctrl_c.hear(work)
    assert undone
    assert ctrl_c.pressed


def test_it_is_put_off_where_half_would_be_worse():
    done = []

    def write() -> int:
        with uninterrupted():
            in_a_collection()
            press()
            done.append(True)
        raise AssertionError

    with Listener() as ctrl_c, pytest.raises(Interrupted):
        ctrl_c.hear(write)
    assert done


def test_before_and_after_a_command_it_is_noted_and_raised_in_the_command_only():
    ran = []
    with Listener() as ctrl_c:
        press()
        with pytest.raises(Interrupted):
            ctrl_c.hear(lambda: ran.append(True) or 0)
    assert not ran
    with Listener() as ctrl_c:
        assert ctrl_c.hear(lambda: 0) == 0
        press()
        assert ctrl_c.pressed


def test_what_a_process_has_not_finished_is_deleted(tmp_path):
    """Where Ctrl-C comes just before the file would be."""
    with scratch(tmp_path / "folder") as folder, replacing(tmp_path / "file") as file:
        file.write(b"half")
        (folder / "half").write_text("")
        assert len(list(tmp_path.iterdir())) == 2
        remove_unfinished()
        assert not list(tmp_path.iterdir())
        (tmp_path / file.name).write_text("")  # so that it can be moved to its place after all


def test_while_training_two_signals_at_once_are_one(monkeypatch, capsys):
    with train.stop_signals() as stop:
        press()
        press()
        assert train.stop_requested(stop)
        monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + SAME)
        with pytest.raises(KeyboardInterrupt):
            press()
    assert capsys.readouterr().err == "vae-jax: SIGINT: saving and stopping\n"
    train.say_too_late(stop)
    assert capsys.readouterr().err == "vae-jax: SIGINT came when all was trained and saved\n"


# --- In a process of its own -----------------------------------------------------------------------------------------

# A command that does what is put in its place, with a file half-written and a thread that goes on.
COMMAND = """
import os, runpy, signal, sys, threading, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
press = lambda: signal.raise_signal(signal.SIGINT)

def run(options):
    from vae_jax.files.replace import replacing
    print("begun")
    with replacing(Path("whole")) as file:
        file.write(b"half")
        threading.Thread(target=time.sleep, args=[100]).start()
        {body}
    print("went on")

if {early}:
    class Finder:
        def find_spec(self, name, *_):
            if name == "vae_jax.config":
                press()
    sys.meta_path.insert(0, Finder())
else:
    from vae_jax.cli import VERBS
    VERBS["sample"] = VERBS["sample"]._replace(run=run)
sys.argv = ["vae-jax", "sample", "some"]
runpy.run_module("vae_jax", run_name="__main__")
"""
BODIES = {
    "while it works": "press()",
    "in a collection": "import gc; gc.callbacks.append(lambda *_: press()); gc.collect()",
    "twice, the first kept by code that goes on": (
        "kept = []\n"
        "        try: press()\n"
        "        except BaseException as error: kept.append(error)\n"
        "        time.sleep(0.6); press()"
    ),
    "while a module is imported": (
        "Path('pressing.py').write_text('import signal; signal.raise_signal(signal.SIGINT)'); "
        "sys.path.insert(0, '.'); import pressing"
    ),
}


@pytest.mark.parametrize("when", [*BODIES, "before the command"])
def test_a_process_ends_at_once_with_one_line_and_no_file(tmp_path, when):
    early = when not in BODIES
    script = COMMAND.format(body=BODIES.get(when, "pass"), early=early)
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert found.returncode == 130, found.stderr
    assert found.stderr == "vae-jax: interrupted\n"
    assert found.stdout == ("" if early else "begun\n")
    assert not {path.name for path in tmp_path.iterdir()} - {"pressing.py", "__pycache__"}
