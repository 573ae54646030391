"""Draws sheets of images, row by row."""

import importlib.util
import io
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PosixPath, WindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple

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
TEXT = 14  # pixels, the least height of a text
LARGEST_TEXT = 256  # pixels
PIXELS = (1 << 31) - 1  # of a picture; Pillow counts in 32 bits
# Small pictures are enlarged until a row of them is so wide, or one of them so large.
WIDE, LARGE = 1536, 192  # pixels
# Many small ones are enlarged to this side at least, unless a row gets wider than that.
SMALL, WIDEST = 24, 4096  # pixels
INCHES = 6.5  # the width in print of a sheet of WIDE pixels, as wide as a page's text
LETTERS = 76  # of a height of which the sheet is as wide: texts have 6 points and more in print


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


def enlargement(columns: int, width: int) -> int:
    """By which whole factor pictures are enlarged that stand in so many columns.

    Args:
        columns: pictures in a row.
        width: of a picture, in pixels.
    """
    fits = min(WIDE // (columns * width), LARGE // width)
    least = min(-(-SMALL // width), WIDEST // (columns * width))
    return max(1, fits, least)


def _font(height: int) -> Any:
    """The font that matplotlib brings, which has more signs than Pillow's own; for texts of so many pixels."""
    spec = importlib.util.find_spec("matplotlib")  # does not import it, which takes a second
    if spec and spec.origin:
        with suppress(OSError):
            return ImageFont.truetype(str(Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"), height)
    return ImageFont.load_default(height)


class Words(NamedTuple):
    """The texts of a sheet; all may be empty.

    Attributes:
        title: above it.
        blocks: titles of blocks of pictures that stand side by side.
        rows: labels, left of the rows.
        captions: whether pictures have captions below them, in the gaps between groups of rows.
    """

    title: str = ""
    blocks: Sequence[str] = ()
    rows: Sequence[str] = ()
    captions: bool = False


NO_WORDS = Words()


class Sheet:
    """A picture of rows of pictures, which come in blocks; small ones are enlarged by a whole factor."""

    def __init__(
        self,
        count: int,
        shape: tuple[int, ...],
        columns: int,
        gap_after_rows: int = 0,
        what: str = "",
        words: Words = NO_WORDS,
    ):
        """Checks that it can be drawn; allocates nothing yet.

        Args:
            count: number of pictures.
            shape: of one, (height, width, channels), grey or RGB.
            columns: pictures in a row; of a block, if there are several.
            gap_after_rows: leaves a wider gap after so many rows; 0 for none.
            what: names the picture in messages; begins with the options to blame.
            words: on it.

        Raises:
            UserError: if the picture has more than PIXELS pixels.
            NotEnough: if it does not fit into memory.
        """
        self._height, self._width, self._channels = shape
        blocks = max(1, len(words.blocks))
        self._count, self._columns, self._rows = count // blocks, columns, -(-count // blocks // columns)
        self._scale = enlargement(columns * blocks, self._width)
        self._group, self._words, self._captions = gap_after_rows, words, dict[int, str]()
        self._canvas = None
        width = self._left(blocks - 1, columns)
        self._text = min(max(TEXT, width // LETTERS), LARGEST_TEXT)
        self._font = _font(self._text)
        self._margin = 2 * GAP + int(max(map(self._font.getlength, words.rows))) if words.rows else 0
        self._title = self._broken(words.title, self._margin + width - 2 * GAP)
        self._header = (len(self._title) + bool(words.blocks)) * self._line + GAP * bool(self._title or words.blocks)
        bottom = self._top(self._rows - 1) + self._height * self._scale + LINE
        height, width = self._size = (bottom + (self._line if words.captions else 0), self._margin + width)
        what = what or f"a picture of {count:,} pictures"
        if height * width > PIXELS:
            raise UserError(
                f"{what}: expected a picture of at most {PIXELS:,} pixels; found one of {width:,} x {height:,}"
            )
        depth = 1 if self._channels == 1 else self._channels + 4  # Pillow copies RGB, with 4 bytes a pixel
        check(height * width * depth, f"{what}: {width:,} x {height:,} pixels")

    @property
    def _line(self) -> int:
        """Pixels of a line of text."""
        return self._text + GAP

    def _top(self, row: int) -> int:
        gaps = row // self._group * (self._line if self._words.captions else GAP) if self._group else 0
        return self._header + LINE + row * (self._height * self._scale + LINE) + gaps

    def _left(self, block: int, column: int) -> int:
        """Of a picture, or of what stands right of the last one; from the margin on."""
        return LINE + (block * self._columns + column) * (self._width * self._scale + LINE) + block * 2 * GAP

    def _corner(self, place: int) -> tuple[int, int]:
        """The top and the left of a picture."""
        block, number = divmod(place, self._count)
        row, column = divmod(number, self._columns)
        return self._top(row), self._margin + self._left(block, column)

    def put(self, places: Sequence[int], pictures: Pictures, captions: Sequence[str] = ()) -> None:
        """Draws pictures in [0, 1] at these places, counted row by row from 0, block by block; captions below them."""
        if self._canvas is None:
            self._canvas = np.full((*self._size, self._channels), 255, np.uint8)
        for place, levels in zip(places, np.rint(np.clip(pictures, 0, 1) * 255).astype(np.uint8), strict=True):
            large = levels.repeat(self._scale, 0).repeat(self._scale, 1)
            top, left = self._corner(place)
            self._canvas[top : top + large.shape[0], left : left + large.shape[1]] = large
        if captions:
            self._captions.update(zip(places, captions, strict=True))

    def write(self, file: Any) -> None:
        """Writes it as a PNG; some picture must have been put."""
        assert self._canvas is not None
        image = Image.fromarray(self._canvas[..., 0] if self._channels == 1 else self._canvas)
        self._write_words(ImageDraw.Draw(image))
        resolution = WIDE / INCHES
        image.save(file, "PNG", dpi=(resolution, resolution))

    def _write_words(self, draw: ImageDraw.ImageDraw) -> None:
        def put(x: int | float, y: int | float, text: str, anchor: str) -> None:
            draw.text((x, y), text, fill="black", font=self._font, anchor=anchor)

        for number, line in enumerate(self._title):
            put(self._margin + GAP, GAP + number * self._line, line, "la")
        for block, title in enumerate(self._words.blocks):
            middle = self._margin + (self._left(block, 0) + self._left(block, self._columns)) / 2
            put(middle, GAP + len(self._title) * self._line, title, "ma")
        for row, label in enumerate(self._words.rows):
            put(GAP, self._top(row) + self._height * self._scale / 2, label, "lm")
        for place, caption in self._captions.items():
            top, left = self._corner(place)
            below, middle = top + self._height * self._scale + GAP / 2, left + self._width * self._scale / 2
            put(middle, below, self._cut(caption), "ma")

    def _broken(self, text: str, width: int) -> list[str]:
        """A text in lines that are no wider than that, if no word is."""
        lines: list[str] = []
        for word in text.split():
            if lines and self._font.getlength(f"{lines[-1]} {word}") <= width:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        return lines

    def _cut(self, caption: str) -> str:
        """A caption that is no wider than a picture: its first word is cut, since its last one is a number."""
        first, _, rest = caption.rpartition(" ")
        width, shown = self._width * self._scale, caption
        while first and self._font.getlength(shown) > width:
            first = first[:-1]
            shown = f"{first}… {rest}" if first else rest
        return shown

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
    """A picture of rows of originals, each above the row of its reconstructions, which come in blocks.

    Below a pair stand its name, if it has one, and the root-mean-square error of its pixels, which lie in [0, 1].
    """

    def __init__(self, count: int, shape: tuple[int, ...], columns: int = 16, what: str = "", names: str = ""):
        """Checks that it can be drawn, see `Sheet`; `names` says what the names are."""
        self._columns = min(columns, count)
        rows = 2 * -(-count // self._columns)
        named = f"{names} and " if names else ""
        title = f"above: images; below: reconstructions, with {named}root-mean-square error of pixels from 0 to 1"
        words = Words(title, captions=True)
        self._sheet = Sheet(rows * self._columns, shape, self._columns, gap_after_rows=2, what=what, words=words)

    def put(self, first: int, above: Pictures, below: Pictures, names: Sequence[str] = ()) -> None:
        """Draws originals, counted from number `first` on, and their reconstructions, with the pairs' names."""
        numbers = np.arange(first, first + len(above))
        places = numbers + numbers // self._columns * self._columns
        # In the finer precision, as if they were one array.
        dtype = np.result_type(above, below)
        above, below = (pictures.astype(dtype, copy=False) for pictures in (above, below))
        errors = np.sqrt(np.square(above - below).mean((1, 2, 3)))
        captions = [
            f"{name}: {error:#.2g}" if name else f"{error:#.2g}"
            for name, error in zip(names or [""] * len(above), errors, strict=True)
        ]
        self._sheet.put(places.tolist(), above)
        self._sheet.put((places + self._columns).tolist(), below, captions)

    def save(self, path: Path) -> Picture:
        """Saves it as a PNG."""
        return self._sheet.save(path)


def pairs(path: Path, above: Pictures, below: Pictures, columns: int = 16, names: Sequence[str] = ()) -> Picture:
    """Saves rows of originals, each above the row of its reconstructions, with names of the pairs, as their classes."""
    drawn = Pairs(len(above), above.shape[1:], columns, names="class" if names else "")
    drawn.put(0, above, below, names)
    return drawn.save(path)
