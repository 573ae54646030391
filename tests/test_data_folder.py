"""Images from a folder."""

import os
import shutil
import struct
import subprocess
import sys
import warnings
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


def test_folders_without_images_are_no_classes_and_reported(root):
    for name in ("cat/1.png", "dog/1.png"):
        png(grey(1), root / name)
    for number in range(30):
        (root / f"empty{number:02}" / "deep").mkdir(parents=True)
    lines = []
    data = load(DataConfig("folder", path=str(root), test=1.0), report=lines.append)
    assert data.class_names == ("cat", "dog")
    (line,) = (line for line in lines if "no classes" in line)
    assert "empty00, " in line
    assert line.endswith("and 10 more")


def test_any_depth_of_folders(root):
    """Deeper than Python's calls within calls."""
    png(grey(1), root / "1.png")
    here = os.getcwd()
    os.chdir(root)
    try:
        for _ in range(1200):
            os.mkdir("a")
            os.chdir("a")
        shutil.copy(root / "1.png", "1.png")
        shutil.move(root / "1.png", "2.png")
    finally:
        os.chdir(here)
    try:
        data = read(root)
    finally:
        subprocess.run(["rm", "-r", root / "a" / "a"], check=True)  # Python's way calls itself
    assert (len(data.train), data.class_names) == (1, ("a",))


def test_names_are_told_on_one_line(root):
    path = root / "a\nb\x1b[31m" / "1.png"
    path.parent.mkdir()
    path.write_text("no image")
    with pytest.raises(UserError) as error:
        read(root)
    assert r"a\nb\x1b[31m/1.png: expected a PNG or JPEG image" in str(error.value)


def test_a_home_folder_that_is_not_there(root):
    refused(Path("~nobody-of-this-name/x"), Path("~nobody-of-this-name/x"), "found nothing")


# Bad images left out


@pytest.fixture
def mixed(root):
    """Five good images of two classes and, among them, images that are bad in every way."""
    for level, name in enumerate(["cat/1.png", "cat/3.png", "dog/1.png", "dog/2.png", "dog/5.png"]):
        png(grey(40 * level), root / name)
    (root / "cat" / "0.png").write_text("no image")
    (root / "cat" / "2.jpg").write_bytes(b"")
    (root / "dog" / "3.png").symlink_to(root / "missing.png")
    os.mkfifo(root / "dog" / "4.png")
    (root / "dog" / "6.png").write_bytes((root / "dog" / "5.png").read_bytes()[:50])
    png(grey(1), root / "ape" / "1.png").write_text("no image")
    return root


BAD = ["ape/1.png", "cat/0.png", "cat/2.jpg", "dog/3.png", "dog/4.png", "dog/6.png"]


def test_bad_images_are_left_out_and_listed(mixed):
    refused(mixed, mixed / "dog" / "3.png", "cannot be read")
    lines = []
    options = {"path": str(mixed), "image_size": 4, "test": 1.0, "cache_dir": str(mixed.parent / "cache")}
    data = load(DataConfig("folder", skip_bad=True, **options), report=lines.append)
    assert [line.split(": ")[0] for line in data.skipped] == [str(mixed / name) for name in BAD]
    assert "data.skip_bad: 6 images are left out" in lines
    assert [line.strip() for line in lines if line.startswith("  ")] == list(data.skipped)
    assert data.class_names == ("cat", "dog")  # a class of bad images only is none
    # The cache remembers which ones.
    again = []
    cached = load(DataConfig("folder", skip_bad=True, **options), report=again.append)
    assert cached.skipped == data.skipped
    assert "data.skip_bad: 6 images are left out" in again
    # And not for those who want to know.
    refused(mixed, mixed / "dog" / "3.png", "cannot be read")
    # What is left is what would be there without them.
    for name in BAD:
        (mixed / name).unlink()
    clean = load(DataConfig("folder", **options))
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(data, split).images, getattr(clean, split).images)
        np.testing.assert_array_equal(getattr(data, split).labels, getattr(clean, split).labels)
    assert (clean.class_names, clean.skipped) == (data.class_names, ())


def test_an_image_that_is_mended_is_no_longer_left_out(mixed):
    read(mixed, skip_bad=True)
    png(grey(1), mixed / "missing.png").rename(mixed.parent / "now.png")
    (mixed / "dog" / "3.png").unlink()
    (mixed / "dog" / "3.png").symlink_to(mixed.parent / "now.png")
    assert len(read(mixed, skip_bad=True).skipped) == 5


def test_many_bad_images_are_counted(root):
    png(grey(1), root / "good1.png")
    png(grey(1), root / "good2.png")
    for number in range(25):
        (root / f"{number:02}.png").write_text("no image")
    lines = []
    config = DataConfig("folder", path=str(root), skip_bad=True, cache_dir=str(root.parent / "cache"), test=1.0)
    assert len(load(config, report=lines.append).skipped) == 25
    assert lines[-1] == "  and 5 more"
    assert len(lines) == 1 + 1 + 20 + 1  # cached, how many, which, and more


def test_nothing_but_bad_images(root):
    path = png(grey(1), root / "1.png")
    path.write_text("no image")
    refused(root, root, "found none among 1", skip_bad=True)
    png(grey(1), root / "train" / "a" / "1.png")
    shutil.move(path, png(grey(1), root / "test" / "a" / "1.png"))
    refused(root, root / "test", "found none among 1", skip_bad=True)


def test_too_little_memory_is_not_the_images_fault(root, monkeypatch):
    png(np.zeros((2000, 2000), np.uint8), root / "1.png")
    png(grey(1), root / "2.png")
    monkeypatch.setattr("vae_jax.memory.available", lambda: 1 << 20)
    refused(root, root / "1.png", "free", skip_bad=True)


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


def test_a_palette_that_is_not_there(root):
    path = png(Image.new("P", (4, 4)), root / "a.png")
    content = path.read_bytes()
    place = content.index(b"PLTE") - 4
    length = int.from_bytes(content[place : place + 4], "big")
    path.write_bytes(content[:place] + content[place + 12 + length :])
    refused(root, path, "cannot be decoded")
    png(grey(1), root / "b.png")
    png(grey(2), root / "c.png")
    assert len(read(root, skip_bad=True).skipped) == 1


def test_a_flipped_bit_in_a_png_is_found(root):
    path = png(RANDOM.randint(0, 256, (40, 40)).astype(np.uint8), root / "a.png")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(root, path, "cannot be decoded")


def png_header(width: int, height: int) -> bytes:
    """A PNG without its pixels: whoever decodes it finds it truncated."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


# Above our limit, above Pillow's, where it warns, and above twice Pillow's, where it raises.
@pytest.mark.parametrize("side", [8_193, 10_000, 30_000])
def test_a_bomb_is_refused_before_it_is_decoded(root, side):
    path = root / "bomb.png"
    path.write_bytes(png_header(side, side))
    refused(root, path, "found an image over that limit")


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1), (1, 1 << 26)])
def test_an_extreme_shape_is_refused(root, shape):
    """Resizing it would take memory for every pixel of its long side."""
    path = root / "line.png"
    path.write_bytes(png_header(*shape))
    refused(root, path, "found an image over that limit")


def test_warnings_about_metadata_are_not_the_users(root):
    """Pillow warns of a palette whose transparency is in bytes, of damaged EXIF data, …"""
    palette = Image.fromarray(RANDOM.randint(0, 256, (4, 4, 3)).astype(np.uint8)).quantize(4)
    png(palette, root / "a.png", transparency=bytes([0, 128, 255]))
    png(grey(1), root / "b.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(root).train) == 1


MEASURE = """
import sys
from pathlib import Path
from vae_jax.data.resize import Resizer, decode
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
Path("/proc/self/clear_refs").write_text("5")
before = peak()
for channels in (1, 3):
    Resizer(64, channels).one(decode(Path(sys.argv[1]), sys.argv[1]))
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs /proc to measure memory")
@pytest.mark.parametrize("kind", ["transparent", "deep", "print"])
def test_the_largest_image_fits_into_a_gigabyte(root, kind):
    path = root / "large"
    if kind == "print":
        Image.new("CMYK", (8192, 8192)).save(path, "jpeg", progressive=True, subsampling=0)
    elif kind == "deep":
        Image.fromarray(np.full((8192, 8192), 300, np.uint16)).save(path, "png", compress_level=1)
    else:
        Image.new("RGBA", (8192, 8192)).save(path, "png", compress_level=1)
    found = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, timeout=100)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < 1000


@pytest.mark.parametrize("mode", ["LA", "P", "I;16"])
def test_large_images_are_converted_as_small_ones(mode, monkeypatch):
    levels = RANDOM.randint(0, 256, (50, 7, 4)).astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray(RANDOM.randint(0, 65536, (50, 7)).astype(np.uint16))
    else:
        image = Image.fromarray(levels).convert("RGB" if mode == "P" else mode).convert(mode)
        image.info["transparency"] = 0
    expected = [Resizer(5, channels).one(image) for channels in (1, 3)]
    monkeypatch.setattr("vae_jax.data.resize.BAND", 30)
    for channels, array in zip((1, 3), expected, strict=True):
        np.testing.assert_array_equal(Resizer(5, channels).one(image), array)


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
