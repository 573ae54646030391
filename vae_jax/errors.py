"""What is told a user: what they can put right, and that a training stopped as they asked."""

from typing import Any


class UserError(ValueError):
    """Bad input: a configuration, a file, a folder or an option.

    Its message is one line that names what, where, what was expected and what was found. The command line prints
    it and exits with code 2; library code lets it pass.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))  # names of files are a part of it, and they may hold anything


class Diverged(UserError):
    """A training whose loss, gradient or parameters are not finite any more."""


class Stopped(Exception):
    """A training that was asked to stop, and did once its state was saved; the message tells where it stands."""


def printable(text: str) -> str:
    """The text as one line that does nothing to a terminal."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def on_terminal(stream: Any) -> bool:
    """Whether a standard stream is a terminal; a process may have been started without one, and then it is None."""
    return stream is not None and stream.isatty()
