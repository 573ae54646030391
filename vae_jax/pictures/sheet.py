"""Draws sheets of images, row by row."""

import io
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PosixPath, WindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from vae_jax.device.memory import check
from vae_jax.errors import UserError
from vae_jax.files.replace import replacing

if TYPE_CHECKING:
    OwnPath = Path
else:  # only from Python 3.12 on Path can be the base of a class
    OwnPath = WindowsPath if os.name == "nt" else PosixPath


Pictures = Float[np.ndarray, "n height width channels"]
LINE, GAP = 2, 8  # pixels between the pictures of a sheet
TEXT = 16  # pixels, the height of labels
PIXELS = (1 << 31) - 1  # of a picture; Pillow counts in 32 bits


class Picture(OwnPath):
    """The path of a PNG; a notebook shows the picture."""

    def _repr_png_(self) -> bytes | None:
        with suppress(OSError):  # the file may have been moved or deleted
            return self.read_bytes()
        return None


def save_picture(path: Path, write: Any) -> Picture:
    """Writes a PNG as a whole, see `replacing`."""
    with replacing(path) as file:
        write(file)
    return Picture(path)


class Sheet:
    """A picture of rows of pictures, which come in blocks; small ones are enlarged by a whole factor."""

    def __init__(
        self,
        count: int,
        shape: tuple[int, ...],
        columns: int,
        gap_after_rows: int = 0,
        what: str = "",
        labels: Sequence[str] = (),
    ):
        """Checks that it can be drawn; allocates nothing yet.

        Args:
            count: number of pictures.
            shape: of one, (height, width, channels), grey or RGB.
            columns: pictures in a row.
            gap_after_rows: leaves a wider gap after so many rows; 0 for none.
            what: names the picture in messages; begins with the options to blame.
            labels: of the rows, written left of them.

        Raises:
            UserError: if the picture has more than PIXELS pixels.
            NotEnough: if it does not fit into memory.
        """
        self._height, self._width, self._channels = shape
        self._columns, self._rows = columns, -(-count // columns)
        self._scale = max(1, 768 // (columns * self._width))
        self._gap_after_rows, self._labels = gap_after_rows, labels
        self._canvas = None
        height, width = self._size = (
            self._top(self._rows - 1) + self._height * self._scale + LINE,
            columns * (self._width * self._scale + LINE) + LINE,
        )
        what = what or f"a picture of {count:,} pictures"
        if height * width > PIXELS:
            raise UserError(
                f"{what}: expected a picture of at most {PIXELS:,} pixels; found one of {width:,} x {height:,}"
            )
        depth = 1 if self._channels == 1 else self._channels + 4  # Pillow copies RGB, with 4 bytes a pixel
        check(height * width * depth, f"{what}: {width:,} x {height:,} pixels")

    def _top(self, row: int) -> int:
        gaps = row // self._gap_after_rows * GAP if self._gap_after_rows else 0
        return LINE + row * (self._height * self._scale + LINE) + gaps

    def put(self, places: Sequence[int], pictures: Pictures) -> None:
        """Draws pictures in [0, 1] at these places, counted row by row from 0."""
        if self._canvas is None:
            self._canvas = np.full((*self._size, self._channels), 255, np.uint8)
        for place, levels in zip(places, np.rint(np.clip(pictures, 0, 1) * 255).astype(np.uint8), strict=True):
            large = levels.repeat(self._scale, 0).repeat(self._scale, 1)
            row, column = divmod(place, self._columns)
            top, left = self._top(row), column * (self._width * self._scale + LINE) + LINE
            self._canvas[top : top + large.shape[0], left : left + large.shape[1]] = large

    def write(self, file: Any) -> None:
        """Writes it as a PNG; some picture must have been put."""
        assert self._canvas is not None
        image = Image.fromarray(self._canvas[..., 0] if self._channels == 1 else self._canvas)
        (self._labelled(image) if self._labels else image).save(file, "PNG")

    def _labelled(self, image: Image.Image) -> Image.Image:
        """The sheet with the rows' labels in a margin left of it."""
        font = ImageFont.load_default(TEXT)
        margin = 2 * GAP + int(max(font.getlength(label) for label in self._labels))
        wide = Image.new(image.mode, (margin + image.width, image.height), "white")
        wide.paste(image, (margin, 0))
        draw = ImageDraw.Draw(wide)
        for row, label in enumerate(self._labels):
            middle = self._top(row) + self._height * self._scale / 2
            draw.text((GAP, middle), label, fill="black", font=font, anchor="lm")
        return wide

    def save(self, path: Path) -> Picture:
        """Saves it as a PNG."""
        return save_picture(path, self.write)


def png(pictures: Pictures, columns: int) -> bytes:
    """The PNG of pictures in [0, 1], grey or RGB, as a grid, row by row, see `Sheet`."""
    sheet = Sheet(len(pictures), pictures.shape[1:], columns)
    sheet.put(range(len(pictures)), pictures)
    file = io.BytesIO()
    sheet.write(file)
    return file.getvalue()


def grid(path: Path, pictures: Pictures, columns: int, gap_after_rows: int = 0) -> Picture:
    """Saves pictures in [0, 1] as a grid, row by row, see `Sheet`.

    Args:
        path: of the PNG.
        pictures: grey or RGB.
        columns: pictures in a row.
        gap_after_rows: leaves a wider gap after so many rows; 0 for none.
    """
    sheet = Sheet(len(pictures), pictures.shape[1:], columns, gap_after_rows)
    sheet.put(range(len(pictures)), pictures)
    return sheet.save(path)


class Pairs:
    """A picture of rows of originals, each above the row of its reconstructions, which come in blocks."""

    def __init__(self, count: int, shape: tuple[int, ...], columns: int = 16, what: str = ""):
        """Checks that it can be drawn, see `Sheet`."""
        self._columns = min(columns, count)
        rows = 2 * -(-count // self._columns)
        self._sheet = Sheet(rows * self._columns, shape, self._columns, gap_after_rows=2, what=what)

    def put(self, first: int, above: Pictures, below: Pictures) -> None:
        """Draws originals, counted from number `first` on, and their reconstructions."""
        numbers = np.arange(first, first + len(above))
        places = numbers + numbers // self._columns * self._columns
        # In the finer precision, as if they were one array.
        dtype = np.result_type(above, below)
        for pictures, further in ((above, 0), (below, self._columns)):
            self._sheet.put((places + further).tolist(), pictures.astype(dtype, copy=False))

    def save(self, path: Path) -> Picture:
        """Saves it as a PNG."""
        return self._sheet.save(path)


def pairs(path: Path, above: Pictures, below: Pictures, columns: int = 16) -> Picture:
    """Saves rows of originals, each above the row of its reconstructions."""
    drawn = Pairs(len(above), above.shape[1:], columns)
    drawn.put(0, above, below)
    return drawn.save(path)
