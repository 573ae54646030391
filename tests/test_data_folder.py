"""Images from a folder."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import png
from PIL import Image

from vae_jax.config import DataConfig
from vae_jax.data import load
from vae_jax.data.resize import Resizer, decode
from vae_jax.errors import UserError

RANDOM = np.random.RandomState(0)


def grey(level: int, size: int = 4) -> np.ndarray:
    return np.full((size, size), level, np.uint8)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


def read(root: Path, **options):
    options = {"image_size": 4, "test": 1.0, **options}
    return load(DataConfig(source="folder", path=str(root), cache_dir=str(root.parent / "cache"), **options))


def refused(root: Path, place: Path, reason: str, **options) -> None:
    with pytest.raises(UserError) as error:
        read(root, **options)
    text = str(error.value)
    assert "\n" not in text
    assert str(place) in text
    assert reason in text


def levels(split) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


# What lies where


def test_images_without_labels_are_in_the_order_of_their_names(root):
    for level, name in enumerate(["b.png", "B.PNG", "a10.png", "a2.Png", "é.png"]):
        png(grey(level), root / name, format="png")
    data = read(root)
    order = np.random.RandomState(0).permutation(5)
    by_name = np.array([1, 2, 3, 0, 4])  # B, a10, a2, b, é
    assert levels(data.train) == by_name[np.sort(order[1:])].tolist()
    assert levels(data.test) == by_name[order[:1]].tolist()
    assert (data.name, data.class_names, data.train.labels) == ("pictures", None, None)


def test_folders_are_classes(root):
    for level, name in enumerate(
        ["dog/2.png", "cat/x/1.jpg", "cat/3.jpeg", "dog/1.png", ".hidden/1.png", "dog/.1.png"]
    ):
        png(grey(40 * level), root / name)
    (root / "empty").mkdir()
    (root / "notes").mkdir()
    (root / "notes" / "readme.txt").write_text("no image")
    data = read(root, test=1.0)
    assert data.class_names == ("cat", "dog")
    together = {
        level: int(label)
        for split in (data.train, data.test)
        for level, label in zip(levels(split), split.labels, strict=True)
    }
    assert together == {0: 1, 40: 0, 80: 0, 120: 1}
    assert data.train.labels.dtype == np.int64


def test_train_and_test_are_splits(root):
    png(grey(1), root / "train" / "cat" / "1.png")
    png(grey(2), root / "train" / "dog" / "1.png")
    png(grey(3), root / "test" / "dog" / "1.png")
    png(grey(4), root / "test" / "ape" / "1.png")
    data = read(root, test=0.2)
    assert data.class_names == ("ape", "cat", "dog")
    assert (levels(data.train), data.train.labels.tolist()) == ([1, 2], [1, 2])
    assert (levels(data.test), data.test.labels.tolist()) == ([4, 3], [0, 2])


def test_train_alone_is_a_class(root):
    png(grey(1), root / "train" / "1.png")
    png(grey(2), root / "other" / "1.png")
    assert read(root).class_names == ("other", "train")


def test_the_cache_follows_the_files(root):
    for level in range(3):
        png(grey(level), root / f"{level}.png")
    assert sorted(levels(read(root).train) + levels(read(root).test)) == [0, 1, 2]
    png(grey(9), root / "2.png")
    png(grey(5), root / "3.png")
    assert sorted(levels(read(root).train) + levels(read(root).test)) == [0, 1, 5, 9]


def test_links_do_not_loop(root):
    for level in range(3):
        png(grey(level), root / "cat" / f"{level}.png")
    (root / "cat" / "up").symlink_to(root, target_is_directory=True)
    (root / "cat" / "self").symlink_to(root / "cat" / "self")
    (root / "cat" / "again").symlink_to(root / "cat", target_is_directory=True)
    png(grey(7), root.parent / "elsewhere" / "7.png")
    (root / "dog").symlink_to(root.parent / "elsewhere", target_is_directory=True)
    data = read(root)
    assert data.class_names == ("cat", "dog")
    assert sorted(levels(data.train) + levels(data.test)) == [0, 1, 2, 7]


def test_folders_that_cannot_be_used(root):
    refused(root / "missing", root / "missing", "found nothing")
    refused(png(grey(1), root.parent / "file.png"), root.parent / "file.png", "found a file")
    refused(root, root, "found none")
    (root / "empty").mkdir()
    (root / "text.txt").write_text("no image")
    refused(root, root, "found none")
    png(grey(1), root / "cat" / "1.png")
    png(grey(1), root / "stray.png")
    refused(root, root, "found both (stray.png and the folder cat)")


def test_files_that_cannot_be_read(root):
    for level in range(3):
        png(grey(level), root / f"{level}.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    refused(root, root / "loop.png", "cannot be read")
    (root / "loop.png").unlink()
    (root / "nowhere.png").symlink_to(root / "missing.png")
    refused(root, root / "nowhere.png", "cannot be read")
    (root / "nowhere.png").unlink()
    os.mkfifo(root / "pipe.png")  # would wait for a writer forever
    refused(root, root / "pipe.png", "special file")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="an administrator can read everything")
def test_a_file_without_permission(root):
    path = png(grey(1), root / "1.png")
    path.chmod(0)
    refused(root, path, "Permission denied")


# Single images


@pytest.mark.parametrize("extension", ["png", "jpg"])
@pytest.mark.parametrize("keep", [0, 4, 30, 0.5, 0.9])
def test_truncated_images_are_named(root, extension, keep):
    png(grey(1), root / "a.png")
    path = png(RANDOM.randint(0, 256, (40, 40, 3)).astype(np.uint8), root / f"b.{extension}")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    refused(root, path, "cannot be decoded")


def test_other_content_is_named(root):
    path = root / "text.png"
    path.write_text("not an image")
    refused(root, path, "cannot be decoded")
    Image.new("RGB", (4, 4)).save(path, format="tiff")
    refused(root, path, "cannot be decoded")


def test_a_flipped_bit_in_a_png_is_found(root):
    path = png(RANDOM.randint(0, 256, (40, 40)).astype(np.uint8), root / "a.png")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(root, path, "cannot be decoded")


@pytest.mark.parametrize("side", [10_000, 30_000])  # above Pillow's limit, where it warns, and above twice the limit
def test_a_bomb_is_refused_before_it_is_decoded(root, side):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = root / "bomb.png"
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    # its pixels are missing: whoever decodes it finds it truncated
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    refused(root, path, "found an image over that limit")


def one(path: Path, channels: int, size: int = 2) -> np.ndarray:
    return Resizer(size, channels).one(decode(path, str(path)))


def test_16_bit_greys_are_scaled(root):
    path = png(np.array([[0, 257], [32768, 65535]], np.uint16), root / "deep.png")
    np.testing.assert_array_equal(one(path, 1)[..., 0], [[0, 1], [128, 255]])
    np.testing.assert_array_equal(one(path, 3)[..., 2], [[0, 1], [128, 255]])


def test_transparency_is_laid_over_white(root):
    rgba = np.array([[[0, 0, 0, 255], [0, 0, 0, 0]], [[255, 0, 0, 255], [0, 0, 0, 128]]], np.uint8)
    expected = np.array([[[0, 0, 0], [255, 255, 255]], [[255, 0, 0], [127, 127, 127]]])
    np.testing.assert_array_equal(one(png(rgba, root / "rgba.png"), 3), expected)
    grey_alpha = Image.fromarray(rgba).convert("LA")
    np.testing.assert_array_equal(one(png(grey_alpha, root / "la.png"), 1)[..., 0], [[0, 255], [76, 127]])


def test_palettes_keep_their_colours(root):
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]], np.uint8)
    palette = Image.fromarray(colours).quantize(4)
    assert palette.mode == "P"
    np.testing.assert_array_equal(one(png(palette, root / "palette.png"), 3), colours)
    see_through = png(palette, root / "transparent.png", transparency=palette.getpixel((0, 0)))
    np.testing.assert_array_equal(one(see_through, 3)[0, 0], [255, 255, 255])


def test_black_and_white(root):
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    np.testing.assert_array_equal(one(png(bits, root / "bits.png"), 1)[..., 0], [[0, 255], [255, 0]])


def test_the_exif_orientation_is_applied(root):
    image = Image.fromarray(np.repeat(np.repeat([[0, 255], [255, 255]], 8, 0), 8, 1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned = one(png(image, root / "photo.jpg", exif=exif, quality=100), 1)[..., 0]
    np.testing.assert_array_equal(turned > 127, [[True, False], [True, True]])


def test_cmyk_photos(root):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    np.testing.assert_allclose(one(png(image, root / "print.jpg", quality=100), 3)[0, 0], [255, 0, 0], atol=6)


def test_any_size_is_resized_as_pillow_does(root):
    image = Image.fromarray(RANDOM.randint(0, 256, (37, 91, 3)).astype(np.uint8))
    expected = image.convert("L").resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(one(png(image, root / "wide.png"), 1, 16)[..., 0], np.asarray(expected))
