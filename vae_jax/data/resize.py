"""The one place where images change size or mode: Pillow's bilinear filter on 8-bit images."""

import warnings
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from vae_jax.errors import UserError


class Resizer:
    """Brings images of any size and mode to size x size, grey (1 channel) or RGB (3 channels)."""

    def __init__(self, size: int, channels: int, report: Callable[[str], None] = lambda line: None):
        self.shape = (size, size, channels)
        self.report = report

    def one(self, image: Image.Image | np.ndarray) -> UInt8[np.ndarray, "size size channels"]:
        """One image, from Pillow or as a uint8 array (h, w) or (h, w, 1, 3 or 4)."""
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
        image = _to_mode(image, "L" if self.shape[2] == 1 else "RGB")
        if image.size != self.shape[:2]:
            image = image.resize(self.shape[:2], Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(self.shape)

    def stack(
        self, images: np.ndarray | Iterable[Image.Image | np.ndarray], count: int
    ) -> UInt8[np.ndarray, "count size size channels"]:
        """`count` images, one after the other; an array of the right shape is given back as it is."""
        if isinstance(images, np.ndarray) and images.reshape(count, *images.shape[1:3], -1).shape[1:] == self.shape:
            return images.reshape(count, *self.shape)
        if count >= 10_000:
            self.report(f"resizing {count:,} images to {self.shape[0]}x{self.shape[1]}")
        out = np.empty((count, *self.shape), np.uint8)
        for row, image in zip(out, images, strict=True):
            row[...] = self.one(image)
        return out


def decode(file: Path | bytes, name: str) -> Image.Image:
    """Decodes one PNG or JPEG image, upright (its EXIF orientation is applied).

    Args:
        file: the file's path or its content.
        name: what the image is called in an error message.

    Raises:
        UserError: it cannot be read, is damaged, or has more pixels than Pillow's limit for a bomb.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # raised before any pixel is decoded
            with Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=("PNG", "JPEG")) as image:
                image.load()
                return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"{name}: expected at most {Image.MAX_IMAGE_PIXELS:,} pixels, found an image over that limit"
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever their parsers do: OSError, SyntaxError, IndexError, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: expected a PNG or JPEG image, but it cannot be decoded ({reason})") from error


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converts to L or RGB; 16-bit greys are scaled and transparency is laid over white, as viewers do."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion cuts off at 255 instead of scaling
        levels = np.asarray(image).astype(np.float64).clip(0, 65535)
        image = Image.fromarray(np.rint(levels / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)
