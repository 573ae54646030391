"""What a level of the comparison is: a question, answered with a verdict and figures."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vae_jax.config import Config
from vae_jax.data.dataset import Dataset

AGREES = "agrees"
ROUNDING = "agrees in float64"  # and float32 is too coarse for this network to tell
DIFFERS = "differs"
NO_DIFFERENCE = "no difference found"  # by a statistical test, which is less than agreement
UNTESTED = "not tested"

Tell = Callable[[str, int, int], None]


class Level(NamedTuple):
    """An answer.

    Attributes:
        verdict: one of the above.
        summary: a sentence with the figures it rests on.
        details: all figures, ready for JSON.
    """

    verdict: str
    summary: str
    details: dict[str, Any]


class Request(NamedTuple):
    """What is compared.

    Attributes:
        config: of the model and its training.
        data: the images.
        steps: of the trajectory.
        seeds: of the independent runs.
        added: results of other frameworks.
        keep: takes each framework's results as soon as there are any.
        tell: called now and then with what goes on, how much is done and how much there is.
    """

    config: Config
    data: Dataset
    steps: int
    seeds: tuple[int, ...]
    added: list[dict[str, Any]]
    keep: Callable[[dict[str, Any]], None]
    tell: Tell


def judge(within: Mapping[str, bool]) -> str:
    """The verdict, given in which precisions the figures stay within their tolerance."""
    if not within["float64"]:
        return DIFFERS
    return AGREES if within["float32"] else ROUNDING
