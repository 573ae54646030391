"""The types of a level of the comparison: a request, and the answer with a verdict and figures."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vae_jax.config import Config
from vae_jax.data.dataset import Dataset

AGREES = "agrees"
ROUNDING = "agrees in float64"  # float32 is too coarse for this network
DIFFERS = "differs"
NO_DIFFERENCE = "no difference found"  # by a statistical test, which is less than agreement
UNTESTED = "not tested"

OnProgress = Callable[[str, int, int], None]


class Level(NamedTuple):
    """A level's answer.

    Attributes:
        verdict: one of the constants above.
        summary: a sentence with the figures behind it.
        details: all figures, ready for JSON.
    """

    verdict: str
    summary: str
    details: dict[str, Any]


class Request(NamedTuple):
    """The comparison that a level is asked for.

    Attributes:
        config: of the model and its training.
        data: the images.
        steps: of the trajectory.
        seeds: of the independent runs.
        added: results of other frameworks.
        keep: takes a framework's results as soon as there are any.
        on_progress: called now and then with the work's name, the amount done and the total.
    """

    config: Config
    data: Dataset
    steps: int
    seeds: tuple[int, ...]
    added: list[dict[str, Any]]
    keep: Callable[[dict[str, Any]], None]
    on_progress: OnProgress


def judge(within: Mapping[str, bool]) -> str:
    """The verdict, from whether the figures stay within their tolerance in each precision."""
    if not within["float64"]:
        return DIFFERS
    return AGREES if within["float32"] else ROUNDING
