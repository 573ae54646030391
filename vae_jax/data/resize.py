"""The one place where images are decoded and change size or mode: Pillow's bilinear filter on 8-bit images."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from math import prod
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from vae_jax import memory
from vae_jax.errors import UserError

# At 12 bytes a pixel for the worst case, a progressive JPEG with four components, an image takes 805 MB.
PIXEL_LIMIT = 1 << 26
DECODING = 12  # bytes a pixel
SIDE_LIMIT = 1 << 16  # Pillow's filter keeps a column of coefficients for every line it reads
BAND = 1 << 20  # pixels converted at a time


class BadImage(UserError):
    """One image that cannot be used, whatever becomes of the others."""


class Resizer:
    """Brings images of any size and mode to size x size, grey (1 channel) or RGB (3 channels)."""

    def __init__(self, size: int, channels: int, report: Callable[[str], None] = lambda line: None):
        self.shape = (size, size, channels)
        self.report = report

    def one(self, image: Image.Image | np.ndarray) -> UInt8[np.ndarray, "size size channels"]:
        """One image, from Pillow or as a uint8 array (h, w) or (h, w, 1, 3 or 4)."""
        if isinstance(image, np.ndarray):
            if image.shape == self.shape:
                return image
            image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
        image = _to_mode(image, "L" if self.shape[2] == 1 else "RGB")
        if image.size != self.shape[:2]:
            image = image.resize(self.shape[:2], Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(self.shape)

    def read(self, file: Path | bytes, name: str) -> UInt8[np.ndarray, "size size channels"]:
        """One PNG or JPEG image; the arguments and what is raised are those of `decode`."""
        with _fault_named(name):  # some damage shows only now, a palette that is not there, say
            return self.one(decode(file, name))

    def stack(
        self, images: np.ndarray | Iterable[Image.Image | np.ndarray | None], count: int
    ) -> UInt8[np.ndarray, "kept size size channels"]:
        """`count` images, one after the other, but for those that are None.

        An array of the right shape is given back as it is.

        Raises:
            UserError: they do not fit into memory.
        """
        if isinstance(images, np.ndarray) and images.reshape(count, *images.shape[1:3], -1).shape[1:] == self.shape:
            return images.reshape(count, *self.shape)
        shape = "x".join(map(str, self.shape))
        memory.check(count * prod(self.shape), f"data.image_size {self.shape[0]}: {count:,} images of {shape}")
        if count >= 10_000:
            self.report(f"resizing {count:,} images to {self.shape[0]}x{self.shape[1]}")
        out = np.empty((count, *self.shape), np.uint8)
        kept = 0
        for _, image in zip(range(count), images, strict=True):
            if image is not None:
                out[kept] = self.one(image)
                kept += 1
        return out[:kept]


def decode(file: Path | bytes, name: str) -> Image.Image:
    """Decodes one PNG or JPEG image, upright (its EXIF orientation is applied).

    Args:
        file: the file's path or its content.
        name: what the image is called in an error message.

    Raises:
        BadImage: it cannot be read, is damaged, or is over the limits of `check_size`.
        UserError: there is not enough memory for it.
    """
    with (
        _fault_named(name),
        Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=("PNG", "JPEG")) as image,
    ):
        check_size(*image.size, name)  # nothing but the header has been read
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image


@contextmanager
def _fault_named(name: str) -> Iterator[None]:
    """Turns what a bad image raises into a BadImage; Pillow's decoders raise whatever their parsers do."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, and of sizes, which are looked at here
            yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise _over_limit(name, "") from error
    except MemoryError as error:
        raise UserError(f"{name}: expected an image that fits into memory, found too little of it free") from error
    except Exception as error:  # OSError, SyntaxError, IndexError, AssertionError, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"{name}: expected a PNG or JPEG image, but it cannot be decoded ({reason})") from error


def check_size(width: int, height: int, name: str) -> None:
    """Refuses an image before it is decoded.

    Raises:
        BadImage: it has more pixels or a longer side than any picture, and would take a GB and more.
        UserError: there is not enough memory for it.
    """
    if width * height > PIXEL_LIMIT or max(width, height) > SIDE_LIMIT:
        raise _over_limit(name, f" ({width}x{height})")
    memory.check(DECODING * width * height, f"{name}, {width}x{height} pixels")


def _over_limit(name: str, size: str) -> BadImage:
    return BadImage(
        f"{name}: expected at most {PIXEL_LIMIT:,} pixels and {SIDE_LIMIT:,} in a line, found an image over that "
        f"limit{size}"
    )


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converts to L or RGB, large images in bands, since some ways take many times an image's memory."""
    if image.mode == mode and not image.has_transparency_data:
        return image
    rows = max(1, BAND // image.width)
    if rows >= image.height:
        return _converted(image, mode)
    out = Image.new(mode, image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        out.paste(_converted(image.crop(box), mode), box)
    return out


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Converts to L or RGB; 16-bit greys are scaled and transparency is laid over white, as viewers do."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion cuts off at 255 instead of scaling
        levels = np.asarray(image).astype(np.float64).clip(0, 65535)
        image = Image.fromarray(np.rint(levels / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)
