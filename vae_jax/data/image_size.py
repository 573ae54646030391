"""Chooses the images' size and channels if the configuration does not set them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from vae_jax.config import Config, DataConfig, check_section
from vae_jax.errors import PATH, UserError, cut

if TYPE_CHECKING:
    from vae_jax.data.dataset import Dataset

LARGEST = 64  # pixels a side: a model of larger images takes hours, so it must be asked for
APART = 2  # smaller sides with a larger ratio have no size in common


class Kind(NamedTuple):
    """One image, or many of the same kind, before resizing.

    Attributes:
        width: in pixels.
        height: in pixels.
        colour: whether it has colours; None if its pixels were not looked at.
        name: of the image, for messages.
        images: number of images; 0 if not known yet.
    """

    width: int
    height: int
    colour: bool | None
    name: str
    images: int = 1

    @property
    def side(self) -> int:
        """The side of the square that it would be resized to."""
        return min(self.width, self.height, LARGEST)


def choose(
    config: DataConfig, kinds: Callable[[], Sequence[Kind]], where: str, report: Callable[[str], None]
) -> tuple[int, int]:
    """The images' size and channels, as configured or else from the images.

    The size is the median of the images' smaller sides, at most `LARGEST`; the channels are 3 if any image has colours.

    Args:
        config: of the data.
        kinds: looks at the images; not called if both are configured.
        where: the place of the images, for messages.
        report: gets a line on the choice and its reason.

    Raises:
        UserError: if the images' sizes differ too much.
    """
    if config.image_size is not None and config.channels is not None:
        return config.image_size, config.channels
    seen = sorted(kinds(), key=lambda kind: (min(kind.width, kind.height), max(kind.width, kind.height)))
    total = sum(kind.images for kind in seen)
    first, last = seen[0], seen[-1]
    smallest, largest = (f"{kind.width}x{kind.height}" for kind in (first, last))
    if config.image_size is None and last.side > APART * first.side:
        raise UserError(
            f"data.image_size: expected it to be set, since the images in {where} have no size in common; found "
            f"{smallest} ({first.name}) to {largest} ({last.name})"
        )
    size, passed = config.image_size or first.side, 0
    for kind in seen if config.image_size is None else ():
        size, passed = kind.side, passed + kind.images
        if 2 * passed >= total:
            break
    colour = any(kind.colour for kind in seen)
    channels = config.channels or (3 if colour else 1)
    chosen = [f"data.image_size {size}"] * (config.image_size is None)
    chosen += [f"data.channels {channels}"] * (config.channels is None)
    line = f"{where}: {' and '.join(chosen)}, chosen for {f'{total:,} ' if total else ''}images of {smallest}"
    line += f"{'' if smallest == largest else f' to {largest}'}, {'in colour' if colour else 'grey'}"
    if not colour and (unseen := sum(kind.images for kind in seen if kind.colour is None)):
        line += f" (the colours of {unseen:,} were not looked at)"
    if config.image_size is None and size == LARGEST < min(last.width, last.height):
        line += f"; at most {LARGEST} is chosen, more must be set"
    if any(kind.width != kind.height for kind in seen):
        line += "; those not square (width x height) are stretched"
    report(line)
    return size, channels


def check_configured(config: DataConfig, name: str, **actual: Any) -> None:
    """Refuses data that differ from what the configuration sets.

    Args:
        config: of the data.
        name: of the data.
        **actual: the data's values of some options.

    Raises:
        UserError: naming the option.
    """
    for option, value in actual.items():
        if (expected := getattr(config, option)) not in (None, value):
            expected, shown = (list(item) if isinstance(item, tuple) else item for item in (expected, value))
            raise UserError(f"data.{option}: expected {expected}, as configured; found {shown} in {cut(name, PATH)}")


def settled(config: Config, data: "Dataset") -> Config:
    """The configuration completed with the kind and shape of the data set's examples, as a run keeps it.

    Raises:
        UserError: if it sets others.
    """
    spec, given = data.spec, config.data
    if given.kind not in (None, spec.kind):
        raise UserError(f"data.kind: expected {spec.kind}, as {cut(data.name, PATH)} has; found {given.kind}")
    if not spec.is_picture:
        actual = {"shape": spec.stored, "values": spec.values or None}
        check_configured(given, data.name, **actual)
        completed = replace(given, kind=spec.kind, **actual)
        check_section(completed)
        return replace(config, data=completed)
    size = spec.shape[0] if given.image_size is None else given.image_size
    channels = spec.shape[-1] if given.channels is None else given.channels
    return replace(config, data=replace(given, kind=None, image_size=size, channels=channels))
