"""Decodes images and changes their size and mode, with Pillow's bilinear filter on 8-bit images."""

import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, UnidentifiedImageError

from vae_jax.data.image_size import Kind
from vae_jax.device import memory
from vae_jax.errors import UserError

# With 12 bytes a pixel in the worst case, a progressive JPEG of four components, an image takes 805 MB; a WebP 1.1 GB.
PIXEL_LIMIT = 1 << 26
DECODING = 12  # bytes a pixel
DECODING_WEBP = 17  # bytes a pixel of a WebP
SIDE_LIMIT = 1 << 16  # Pillow's filter keeps a column of coefficients for every line it reads
BAND = 1 << 20  # pixels converted at a time
FORMATS = {  # the formats that are read, by Pillow's names, and the endings of their files
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
INSPECTED = 256  # pixels a side to which an image is reduced to look for colours
TINT = 8  # levels by which a grey image's red, green and blue may differ: a lossy format rounds
READ = "PNG, JPEG, WebP, BMP, TIFF, GIF or PNM"  # for messages
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
XMP = b"XML:com.adobe.xmp\0\0"  # the beginning of a chunk that holds it uncompressed
METADATA = {  # a PNG's chunks that do not affect its pixels
    *(b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"cHRM", b"gAMA", b"sRGB", b"sBIT", b"pHYs", b"tIME", b"hIST", b"sPLT"),
    *(b"bKGD", b"eXIf"),
}
JPEG_SIGNATURE = b"\xff\xd8"
JPEG_METADATA = {
    *range(0xE2, 0xEE),
    0xEF,
    0xFE,
}  # markers, without APP1, which may hold the orientation, and APP14, which may hold the kind of colours
JFIF, WHOLE_JFIF = 0xE0, 16  # its marker, which holds the kind of colours, and its least length
START_OF_SCAN = 0xDA  # the marker before the pixels
TIFF_SIGNATURES = (b"II*\0", b"MM\0*")
TIFF_METADATA = {  # tags that do not affect the pixels
    *(254, 255, 269, 270, 271, 272, 282, 283, 285, 286, 287, 296, 297, 305, 306, 315, 316, 700, 33432, 33550, 33723),
    *(33922, 34377, 34665, 34675, 34735, 34736, 34737, 34853, 37724, 42112, 42113, 50341),
}
ORIENTATION, BITS_PER_SAMPLE, PHOTOMETRIC, TILE_WIDTH, TILE_LENGTH = 274, 258, 262, 322, 323  # tags of EXIF and TIFF
DEEP = ("I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of 16-bit greys
UPRIGHT = {  # the transformation that undoes an orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(UserError):
    """An image that cannot be used; others may be."""


class Resizer:
    """Brings images of any size and mode to size x size, grey (1 channel) or RGB (3 channels).

    Attributes:
        shape: of an image.
        report: gets a line on steps that take time.
        brightest: the highest level of the images before resizing, by the split given to `stack`.
    """

    def __init__(self, size: int, channels: int, report: Callable[[str], None] = lambda line: None):
        self.shape = (size, size, channels)
        self.report = report
        self.brightest: dict[str, int] = {}
        self._level = 0

    def one(self, image: Image.Image | np.ndarray) -> UInt8[np.ndarray, "size size channels"]:
        """One image, from Pillow or as a uint8 array (h, w) or (h, w, 1, 3 or 4)."""
        if isinstance(image, np.ndarray):
            if image.shape == self.shape:
                self._level = max(self._level, int(image.max()))
                return image
            image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
        image = _to_mode(image, "L" if self.shape[2] == 1 else "RGB")
        extrema: Any = image.getextrema()
        self._level = max(self._level, int(np.max(extrema)))
        if image.size != self.shape[:2]:
            image = image.resize(self.shape[:2], Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(self.shape)

    def read(self, file: Path | bytes, name: str) -> UInt8[np.ndarray, "size size channels"]:
        """The image in a file; takes and raises the same as `decode`."""
        with _as_bad_image(name):  # some damage shows only now, as a missing palette
            return self.one(decode(file, name))

    def stack(
        self, images: np.ndarray | Iterable[Image.Image | np.ndarray | None], count: int, split: str = "train"
    ) -> UInt8[np.ndarray, "kept size size channels"]:
        """One split's images in one array, without those that are None.

        An array of the right shape is returned unchanged.

        Args:
            images: as `one` takes them.
            count: number of images.
            split: its name, for `brightest`.

        Raises:
            UserError: if they do not fit into memory.
        """
        if isinstance(images, np.ndarray) and images.reshape(count, *images.shape[1:3], -1).shape[1:] == self.shape:
            self.brightest[split] = int(images.max())
            return images.reshape(count, *self.shape)
        shape = "x".join(map(str, self.shape))
        memory.check(count * prod(self.shape), f"data.image_size {self.shape[0]}: {count:,} images of {shape}")
        if count >= 10_000:
            self.report(f"resizing {count:,} images to {self.shape[0]}x{self.shape[1]}")
        out = np.empty((count, *self.shape), np.uint8)
        kept = self._level = 0
        for _, image in zip(range(count), images, strict=True):
            if image is not None:
                out[kept] = self.one(image)
                kept += 1
        self.brightest[split] = self._level
        return out[:kept]


def decode(file: Path | bytes, name: str) -> Image.Image:
    """Decodes one image of a format in `FORMATS`, upright (its EXIF orientation is applied).

    Args:
        file: the file's path or its content.
        name: of the image, for messages.

    Raises:
        BadImage: if it cannot be read, is damaged, holds several pictures or levels of an unknown scale, or is over the
            limits of `check_size`.
        UserError: if it does not fit into memory.
    """
    with _as_bad_image(name):
        return _or_without_metadata(lambda file: _decode(file, name), file)


def inspect(file: Path | bytes, name: str, look: bool = True) -> Kind:
    """An image's size, from its header, and whether it has colours, from its pixels: grey ones are often stored as RGB.

    Args:
        file: as for `decode`.
        name: as for `decode`.
        look: whether to look at its pixels, which takes time.

    Raises:
        BadImage: if it cannot be read, or as `decode` does.
    """
    with _as_bad_image(name):
        width, height, mode = _or_without_metadata(_header, file)
        colour = False if mode in ("1", "L", "LA", "I", "F", *DEEP) else None
        if colour is None and look:
            sample = Resizer(min(width, height, INSPECTED), 3).one(decode(file, name)).astype(np.int16)
            colour = bool(np.ptp(sample, axis=-1).max() > TINT)
    return Kind(width, height, colour, name)


def _open(file: Path | bytes) -> ImageFile.ImageFile:
    return Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=tuple(FORMATS))


def _header(file: Path | bytes) -> tuple[int, int, str]:
    with _open(file) as image:
        return image.width, image.height, image.mode


def _or_without_metadata(use: Callable[[Path | bytes], Any], file: Path | bytes) -> Any:
    """The result of `use` for a file, or for the file without its metadata if Pillow fails on them."""
    try:
        return use(file)
    except (UserError, MemoryError, Image.DecompressionBombError):
        raise
    except Exception:
        if (bare := _without_metadata(file)) is None:
            raise
    return use(bare)


def _without_metadata(file: Path | bytes) -> bytes | None:
    """A PNG, JPEG or TIFF without its metadata, except a possible orientation; None if there is nothing to remove."""
    with BytesIO(file) if isinstance(file, bytes) else file.open("rb") as stream:
        signature = stream.read(len(PNG_SIGNATURE))
        if signature == PNG_SIGNATURE:
            return _bare_png(stream)
        if signature[:4] in TIFF_SIGNATURES:
            return _bare_tiff(signature + stream.read())
        stream.seek(len(JPEG_SIGNATURE))
        return _bare_jpeg(stream) if signature.startswith(JPEG_SIGNATURE) else None


def _bare_png(stream: BytesIO | BufferedReader) -> bytes | None:
    kept, dropped = [PNG_SIGNATURE], False
    while len(head := stream.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        body = stream.read(length + 4)
        whole = zlib.crc32(kind + body[:-4]) == int.from_bytes(body[-4:], "big")
        if kind in METADATA and not (whole and (kind == b"eXIf" or body.startswith(XMP))):
            dropped = True
        else:
            kept += [head, body]
    return b"".join(kept) if dropped else None


def _bare_jpeg(stream: BytesIO | BufferedReader) -> bytes | None:
    kept, dropped = [JPEG_SIGNATURE], False
    while len(head := stream.read(4)) == 4 and head[0] == 0xFF and head[1] != START_OF_SCAN:
        length = int.from_bytes(head[2:], "big")
        body = stream.read(max(0, length - 2))
        if head[1] in JPEG_METADATA or (head[1] == JFIF and length < WHOLE_JFIF):
            dropped = True
        else:
            kept += [head, body]
    return b"".join([*kept, head, stream.read()]) if dropped else None


def _bare_tiff(content: bytes) -> bytes | None:
    order: Literal["little", "big"] = "little" if content.startswith(b"II") else "big"
    start = int.from_bytes(content[4:8], order)
    end = start + 2 + 12 * int.from_bytes(content[start : start + 2], order)
    entries = [content[place : place + 12] for place in range(start + 2, end, 12)]
    kept = [entry for entry in entries if int.from_bytes(entry[:2], order) not in TIFF_METADATA]
    if len(kept) == len(entries):
        return None
    directory = len(kept).to_bytes(2, order) + b"".join(kept) + content[end : end + 4]
    return content[:start] + directory + content[start + len(directory) :]


def _decode(file: Path | bytes, name: str) -> Image.Image:
    with _open(file) as opened:
        image: Any = opened
        need = DECODING_WEBP if image.format == "WEBP" else DECODING
        check_size(image.width, image.height, name, need)  # nothing but the header has been read
        tags: Any = getattr(image, "tag_v2", {})  # a TIFF's
        width, height = tags.get(TILE_WIDTH), tags.get(TILE_LENGTH)
        if isinstance(width, int) and isinstance(height, int):
            check_size(width, height, name)
        # A camera's JPEG may have previews behind it (MPO).
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise BadImage(f"{name}: expected a single picture, found a file of several")
        bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
        if image.mode == "F" or (image.mode == "I" and image.format != "PPM") or (image.mode in DEEP and bits != 16):
            actual = "floats" if image.mode == "F" else f"{bits if image.mode in DEEP else 32} bits"
            raise BadImage(f"{name}: expected levels of 8 or 16 bits, whose white is known, found {actual}")
        raw = image.tile[0][3] if image.format == "PNG" else None
        image.load()
        if "transparency" in image.info and raw is not None:
            image = _with_transparency(image, raw, file)
        if image.mode in DEEP and tags.get(PHOTOMETRIC) == 0:  # white is 0; Pillow inverts only 8 bits
            image = Image.fromarray(65535 - np.asarray(image).astype(np.uint16))
        turn = UPRIGHT.get(_orientation(image))
        return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> Any:
    """The orientation in EXIF, or else XMP; None if neither can be read."""
    for _ in range(2):
        try:
            return image.getexif().get(ORIENTATION)
        except Exception:  # a parser may raise anything
            image.info.pop("exif", None)  # next time: XMP
            image._exif = None
    return None


def _with_transparency(image: Image.Image, raw: str, file: Path | bytes) -> Image.Image:
    """The PNG with its transparent level on the scale of the decoded levels, or with an alpha channel instead.

    Args:
        image: decoded; its transparent level is the file's.
        raw: Pillow's name of the file's levels.
        file: the image's.
    """
    level = image.info["transparency"]
    if image.mode == "L":
        depth = int(raw.partition(";")[2] or 8)
        image.info["transparency"] = (level & ((1 << depth) - 1)) * 255 // ((1 << depth) - 1)
    elif raw == "RGB":
        image.info["transparency"] = tuple(part & 255 for part in level)
    elif image.mode == "RGB":  # 16 bits, of which Pillow keeps the high byte
        del image.info["transparency"]
        with _open(file) as low:
            low.tile = [low.tile[0]._replace(args="RGB;16L")]  # read with swapped bytes: the low byte
            low.load()
            alpha = Image.new("L", image.size)
            rows = max(1, BAND // image.width)
            for top in range(0, image.height, rows):
                box = (0, top, image.width, min(top + rows, image.height))
                levels = np.asarray(image.crop(box)).astype(np.uint16) << 8 | np.asarray(low.crop(box))
                alpha.paste(Image.fromarray(np.where((levels == level).all(-1), 0, 255).astype(np.uint8)), box)
        image.putalpha(alpha)
    return image


@contextmanager
def _as_bad_image(name: str) -> Iterator[None]:
    """A context that turns any error of Pillow's decoders into a BadImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, and about sizes, which are checked here
            yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise _over_limit(name, "") from error
    except MemoryError as error:
        raise UserError(f"{name}: expected an image that fits into memory, found too little of it free") from error
    except Exception as error:  # OSError, SyntaxError, IndexError, AssertionError, …
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = "unknown content" if isinstance(error, UnidentifiedImageError) else reason
        raise BadImage(f"{name}: expected an image ({READ}), but it cannot be decoded ({reason})") from error


def check_size(width: int, height: int, name: str, need: int = DECODING) -> None:
    """Refuses an image before it is decoded, which takes `need` bytes a pixel.

    Raises:
        BadImage: if it has more pixels or a longer side than any picture, and would take a GB or more.
        UserError: if it does not fit into memory.
    """
    if width * height > PIXEL_LIMIT or max(width, height) > SIDE_LIMIT:
        raise _over_limit(name, f" ({width}x{height})")
    memory.check(need * width * height, f"{name}, {width}x{height} pixels")


def _over_limit(name: str, size: str) -> BadImage:
    return BadImage(
        f"{name}: expected at most {PIXEL_LIMIT:,} pixels and {SIDE_LIMIT:,} in a line, found an image over that "
        f"limit{size}"
    )


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converts to L or RGB, large images in bands, since some conversions take many times an image's memory."""
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
    """Converts to L or RGB; scales 16-bit greys and lays transparency over white, as viewers do."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's conversion cuts off at 255 instead of scaling
        deep = np.asarray(image)
        levels = np.rint(deep.astype(np.float64).clip(0, 65535) / 257).astype(np.uint8)
        if "transparency" in image.info:
            levels[deep == image.info["transparency"]] = 255
        image = Image.fromarray(levels)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)
