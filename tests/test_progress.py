"""How far a long command is, where there is no terminal to draw a bar on."""

import pytest
from run_fixtures import TINY, flags

from vae_jax.cli import main, progress
from vae_jax.errors import counted


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until the test moves it."""
    times = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: times[-1])
    return times


def test_lines_come_now_and_then_and_say_what_is_left(clock, capsys):
    with progress.progress("estimating") as show:
        for second in range(200):
            clock.append(100.0 + second)
            show(second, 200)
    assert capsys.readouterr().err.splitlines() == [
        "estimating: 8%, about 3 min left",  # after 15 seconds, and then after 30 and 60 more
        "estimating: 22%, about 3 min left",
        "estimating: 52%, about 95 s left",
    ]


def test_a_line_of_the_commands_own_puts_the_next_one_off(clock, capsys):
    lines = progress.Lines("training")
    for second in range(60):
        clock.append(100.0 + second)
        lines.heard()
        lines.show(second, 60)
    assert capsys.readouterr().err == ""
    clock.append(clock[-1] + 15)
    lines.show(59, 60, ", epoch 3")
    assert capsys.readouterr().err == "training: 98%, epoch 3, about 1 s left\n"


def test_what_was_done_before_is_no_measure_of_speed(clock, capsys):
    """Compiling comes before the first call, and a resumed run has many epochs already."""
    lines = progress.Lines("training")
    clock.append(clock[-1] + 100)  # compiling
    lines.show(80, 100)
    clock.append(clock[-1] + 100)
    lines.show(81, 100)
    assert capsys.readouterr().err == "training: 81%, about 32 min left\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (40.0, "40 s"), (99.0, "99 s"), (720.0, "12 min"), (5940.0, "99 min"), (12600.0, "3.5 h")],
)
def test_a_span_in_words(seconds, words):
    assert progress.span(seconds) == words


@pytest.mark.parametrize(
    ("number", "noun", "words"),
    [(1, ["image"], "1 image"), (0, ["epoch"], "0 epochs"), (1200, ["image"], "1,200 images")],
)
def test_a_number_of_things(number, noun, words):
    assert counted(number, *noun) == words
    assert counted(2, "class", "classes") == "2 classes"


def test_training_says_that_it_compiles_and_that_images_are_few(tmp_path, capsys):
    small = {**TINY, "data.test": 1500, "train.epochs": 1, "train.batch_size": 1000}
    assert main(["train", "--config", "digits", *flags(**small), "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    assert "compiling …" in printed.out.splitlines()
    assert "train.batch_size 1000: a batch has 97 training images, since there are no more" in printed.out
    assert printed.out.splitlines()[-1].startswith("  picture: ")
    assert " after 1 epoch\n" in printed.out
