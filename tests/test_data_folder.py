"""Images from a folder."""

import io
import os
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_fixtures import chunk, png, raw_png
from PIL import Image

from vae_jax.config import DataConfig
from vae_jax.data import load
from vae_jax.data.resize import Resizer, decode, inspect
from vae_jax.errors import UserError

RANDOM = np.random.RandomState(0)


def grey(level: int, size: int = 4) -> np.ndarray:
    return np.full((size, size), level, np.uint8)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


def read(root: Path, lines: list[str] | None = None, **options):
    """The data set in a folder; `lines` gets what is reported."""
    options = {"image_size": 4, "test": 1.0, **options}
    config = DataConfig(source="folder", path=str(root), cache_dir=str(root.parent / "cache"), **options)
    return load(config, report=lines.append if lines is not None else None)


def resized(image: np.ndarray | Image.Image, kind: str, channels: int = 1, **options) -> np.ndarray:
    """An image as it is read from a file of this format, 4 x 4."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return Resizer(4, channels).read(buffer.getvalue(), "image")


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


def tree(root: Path, *folders: str, images: int = 5) -> Path:
    """Images of levels 10, 11, … in the first folder, 20, 21, … in the second, and so on."""
    for number, folder in enumerate(folders, 1):
        for image in range(images):
            png(grey(10 * number + image), root / folder / f"{image}.png")
    return root


@pytest.mark.parametrize(
    ("folders", "train", "test", "validation"),
    [
        (("train/a", "train/b", "val/a", "val/b"), {1, 2}, None, {3, 4}),
        (("Train/a", "TEST/b"), {1}, {2}, None),
        (("training/a", "testing/a", "valid/b"), {1}, {2}, {3}),
        (("train", "test", "Validation"), {1}, {2}, {3}),
        (("train/a", "dev/a"), {1}, None, {2}),
        (("train/a", "train/b"), {1, 2}, None, None),
        (("train_set/a", "val_set/a"), {1}, None, {2}),
        (("train2017", "test2017", "val2017"), {1}, {2}, {3}),
        (("images_train", "images-test"), {1}, {2}, None),
        (("TrainSet/a", "DevSet/a"), {1}, None, {2}),
        (("train", "val_images"), {1}, None, {2}),
    ],
)
def test_splits_by_any_of_their_names(root, folders, train, test, validation):
    (root / "notes").mkdir(parents=True)
    lines = []
    data = read(tree(root, *folders), lines, test=0.2)
    if test:
        assert {level // 10 for level in levels(data.test)} == test
        assert {level // 10 for level in levels(data.train)} == train
    else:
        assert len(data.test) == len(train)
        assert sorted(levels(data.train) + levels(data.test)) == [
            10 * number + image for number in train for image in range(5)
        ]
    assert (data.validation and {level // 10 for level in levels(data.validation)}) == validation
    classes = sorted({folder.partition("/")[2] for folder in folders} - {""})
    assert data.class_names == (tuple(classes) or None)
    if classes:
        of = {number: classes.index(folder.partition("/")[2]) for number, folder in enumerate(folders, 1)}
        for split in (data.train, data.test, data.validation):
            assert split is None or [of[level // 10] for level in levels(split)] == split.labels.tolist()
    (said,) = (line for line in lines if "the train images are those in" in line)
    assert ("the validation images are those in" in said) == bool(validation)
    assert ("no test folder" in said) == (validation is not None and test is None)
    assert f"the train images are those in {folders[0].partition('/')[0]}, {5 * len(train)} images; " in said
    counts = [f"{name} ({5 * sum(folder.endswith('/' + name) for folder in folders)})" for name in classes]
    ending = f"{len(counts)} class{'es' * (len(counts) != 1)}: {', '.join(counts)}" if counts else "no classes"
    assert said.endswith(f"; {ending}")
    again = read(root, test=0.2)  # from the cache
    assert (again.validation and levels(again.validation)) == (data.validation and levels(data.validation))


@pytest.mark.parametrize(
    ("folders", "named"),
    [
        (("train/a", "Training/a"), {"Training", "train"}),
        (("train/a", "val/a", "valid/a"), {"train", "val", "valid"}),
        (("train/a", "test/a", "other"), {"train", "test", "other"}),
        (("train/a", "other"), {"train", "other"}),
        (("test/a", "other"), {"test", "other"}),
        (("test/a", "val/a"), {"test", "val"}),
        (("val",), {"val"}),
        (("valid", "invalid"), {"valid", "invalid"}),
        (("train_set", "val_set", "other"), {"train_set", "val_set", "other"}),
        (("trainA", "trainB", "testA"), {"trainA", "trainB", "testA"}),
    ],
)
def test_splits_that_cannot_be_understood_are_refused(root, folders, named):
    tree(root, *folders)
    with pytest.raises(UserError, match="a folder train with nothing but one test and one validation") as error:
        read(root)
    assert set(str(error.value).rpartition("found ")[2].split(", ")) == named
    assert " split; rename it if it is a class), found " in str(error.value)
    assert any(f"({name} is read as the " in str(error.value) for name in named - {"other", "invalid"})


@pytest.mark.parametrize(
    ("folders", "named"),
    [
        (("data/train/a", "data/val/a"), {"data/train", "data/val"}),
        (("a/train", "a/test", "b/train", "b/test"), {"a/train", "a/test"}),
        (("x/data/train2017", "x/data/val2017"), {"x/data/train2017", "x/data/val2017"}),
        (("cat", "cat/Test"), {"cat/Test"}),
        (("train/a/valid", "train/a/1", "test/a"), {"a/valid"}),
        (("train/train/a", "train/val/a"), {"train", "val"}),
        (("seg_train/seg_train/a", "seg_test/seg_test/a"), {"seg_test"}),
    ],
)
def test_splits_in_classes_are_refused(root, folders, named):
    tree(root, *folders)
    with pytest.raises(UserError, match="expected a folder for each class without splits in it, found") as error:
        read(root)
    found = str(error.value).rpartition("found ")[2].partition("; name the folder that holds the splits")[0]
    assert set(found.split(", ")) == named


def test_dark_levels_of_files_are_said_without_code(root):
    lines = []
    read(tree(root, "a"), lines)
    dark = "the brightest level is 14 among the train images; if 14 is white, scale them by 255 / 14"
    assert f"pictures: white is 255, but {dark}" in lines


def test_what_only_sounds_like_a_split_is_a_class(root):
    lines = []
    data = read(tree(root, "vehicle/train", "vehicle/bus", "testbed", "invalid"), lines)
    assert data.class_names == ("invalid", "testbed", "vehicle")
    assert f"{root}: 20 images; 3 classes: invalid (5), testbed (5), vehicle (10)" in lines


def test_all_sizes_are_looked_at_and_some_colours(root, monkeypatch):
    monkeypatch.setattr("vae_jax.data.folder.SAMPLE", 3)
    for number in range(10):
        png(np.full((8, 8, 3), number, np.uint8), root / f"{number}.png")
    lines = []
    assert read(root, lines, image_size=None).image_shape == (8, 8, 1)
    said = "images of 8x8, grey (the colours of 7 were not looked at)"
    assert f"{root}: data.image_size 8 and data.channels 1, chosen for 10 {said}" in lines
    png(np.full((8, 8, 3), [9, 90, 200], np.uint8), root / "0.png")  # one that is looked at
    assert read(root, lines, image_size=None).image_shape == (8, 8, 3)
    png(grey(1, 30), root / "5.png")  # the colours of this one are not looked at
    refused(root, root / "5.png", "the images in", image_size=None)


def test_images_beside_splits_are_refused(root):
    png(grey(1), tree(root, "train", "test") / "stray.png")
    refused(root, root, "stray.png")


def test_a_validation_split_is_not_held_out_once_more(root):
    tree(root, "train", "val")
    with pytest.raises(UserError, match=r"data\.validation: expected 0, since pictures has a validation split"):
        read(root, validation=0.1)


def test_train_among_classes_is_a_class(root):
    lines = []
    assert read(tree(root, "train", "ship", "test_tubes"), lines).class_names == ("ship", "test_tubes", "train")
    assert f"{root}: the folder train is taken for a class, as ship beside it is one" in lines


# Formats


def test_every_format_is_read_alike():
    picture = RANDOM.randint(0, 256, (4, 4, 3)).astype(np.uint8)
    np.testing.assert_array_equal(resized(picture, "png", 3), picture)
    for kind, options in (("bmp", {}), ("tiff", {}), ("tiff", {"compression": "tiff_lzw"}), ("ppm", {})):
        np.testing.assert_array_equal(resized(picture, kind, 3, **options), picture)
    np.testing.assert_array_equal(resized(picture, "webp", 3, lossless=True), picture)
    np.testing.assert_array_equal(resized(Image.fromarray(picture).quantize(16), "gif", 3), picture)
    deep = (picture[..., 0].astype(np.uint16) << 8) + 77
    for kind in ("tiff", "ppm"):
        np.testing.assert_array_equal(resized(deep, kind), resized(deep, "png"))
    for kind in ("webp", "tiff"):  # transparency, and orientation
        see_through = np.dstack([picture, RANDOM.randint(0, 2, (4, 4)).astype(np.uint8) * 255])
        options = {"lossless": True} if kind == "webp" else {}
        np.testing.assert_array_equal(resized(see_through, kind, 3, **options), resized(see_through, "png", 3))
        exif = Image.Exif()
        exif[0x0112] = 6
        np.testing.assert_array_equal(resized(picture, kind, 3, exif=exif, **options), np.rot90(picture, -1))


@pytest.mark.parametrize("ending", ["webp", "bmp", "tif", "TIFF", "gif", "pgm", "jfif"])
def test_formats_are_mixed_and_counted(root, ending):
    kind = {"tif": "TIFF", "pgm": "PPM", "jfif": "JPEG"}.get(ending, ending.upper())
    for number in range(3):
        png(grey(number), root / "a" / f"{number}.png")
        png(grey(10 + number), root / "a" / f"x{number}.{ending}", format=kind)
    lines = []
    data = read(root, lines)
    assert len(data.train) + len(data.test) == 6
    assert f"{root}: 6 images (3 PNG, 3 {kind})" in lines


def test_what_is_left_out_is_counted_and_named(root):
    names = ["a/1.heic", "a/deep/2.HEIC", "a/notes.txt", "a/bare", "a/.DS_Store", "a/._1.png", "a/.3.jpg", ".git/x.png"]
    for name in ("a/1.png", "a/2.png", *names):
        png(grey(1), root / name, format="png")
    (root / "labels.csv").write_text("")
    lines = []
    read(root, lines)
    (line,) = (line for line in lines if "left out" in line)
    assert line.startswith(f"{root}: 2 images (2 PNG); left out are 6 other files: ")
    assert set(line.partition("files: ")[2].split(", ")) == {
        *("1 .csv (labels.csv)", "1 hidden (a/.3.jpg)", "2 .heic (a/1.heic)", "1 without an ending (a/bare)"),
        "1 .txt (a/notes.txt)",
    }
    for name in ("a/1.png", "a/2.png"):
        (root / name).unlink()
    refused(root, root, "found none; left out are 6 other files: ")


@pytest.mark.parametrize("kind", ["gif", "webp", "tiff", "png"])
def test_a_file_of_several_pictures_is_refused(root, kind):
    more = [Image.fromarray(grey(level)) for level in (100, 200)]
    path = png(grey(1), root / f"b.{kind}", save_all=True, append_images=more)
    refused(root, path, "expected a single picture, found a file of several")
    png(grey(1), root / "a.png")
    png(grey(2), root / "c.png")
    assert len(read(root, skip_bad=True).skipped) == 1


@pytest.mark.parametrize("levels", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 200, np.int32)])
def test_levels_whose_white_is_unknown_are_refused(root, levels):
    refused(root, png(Image.fromarray(levels), root / "a.tif"), "8 or 16 bits, whose white is known, found")


def test_a_tiff_of_16_bits_whose_white_is_0():
    levels = np.array([[0, 257], [32768, 65535]], np.uint16).repeat(2, 0).repeat(2, 1)
    read = resized(levels, "tiff", tiffinfo={262: 0})[::2, ::2, 0]
    np.testing.assert_array_equal(read, [[255, 254], [127, 0]])


@pytest.mark.parametrize("kind", ["webp", "tiff", "bmp", "gif", "ppm"])
def test_a_bomb_of_any_format_is_refused_before_it_is_decoded(root, kind):
    """The header claims 10,000 x 10,000 pixels, and the file is too small to hold them."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
    Image.new("L", (2, 2)).save(buffer, kind, **options)
    content = bytearray(buffer.getvalue())
    if kind == "webp":
        content[21:25] = struct.pack("<I", 9_999 | 9_999 << 14)  # after the signature of a lossless picture
    elif kind == "bmp":
        content[18:26] = struct.pack("<ii", 10_000, 10_000)
    elif kind == "gif":
        content[6:10] = struct.pack("<HH", 10_000, 10_000)
    elif kind == "ppm":
        content = b"P5 10000 10000 255\n" + bytes(4)
    else:
        for tag in (256, 257):
            place = content.index(struct.pack("<HHI", tag, 4, 1))
            content[place + 8 : place + 12] = struct.pack("<I", 10_000)
    path = root / f"bomb.{kind}"
    path.write_bytes(content)
    refused(root, path, "found an image over that limit")


def test_a_tiffs_tiles_are_no_larger_than_images():
    tags = {256: 32, 257: 32, 258: 8, 259: 8, 262: 1, 277: 1, 322: 60_000, 323: 60_000, 324: 134, 325: 16}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + zlib.compress(bytes(1024))
    with pytest.raises(UserError, match="found an image over that limit"):
        decode(content, "image")


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


def test_names_are_said_on_one_line(root):
    path = root / "a\nb\x1b[31m" / "1.png"
    path.parent.mkdir()
    path.write_text("no image")
    with pytest.raises(UserError) as error:
        read(root)
    assert r"a\nb\x1b[31m/1.png: expected an image (PNG, " in str(error.value)


def test_a_home_folder_that_is_not_there(root):
    refused(Path("~nobody-of-this-name/x"), Path("~nobody-of-this-name/x"), "is no home folder here")


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
    assert "data.skip_bad: 6 images left out" in lines
    assert [line.strip() for line in lines if line.startswith("  ")] == list(data.skipped)
    assert data.class_names == ("cat", "dog")  # a class of bad images only is none
    # The cache remembers which ones.
    again = []
    cached = load(DataConfig("folder", skip_bad=True, **options), report=again.append)
    assert cached.skipped == data.skipped
    assert "data.skip_bad: 6 images left out" in again
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
    png(grey(255), root / "good1.png")
    png(grey(255), root / "good2.png")
    for number in range(25):
        (root / f"{number:02}.png").write_text("no image")
    lines = []
    config = DataConfig(
        "folder",
        path=str(root),
        skip_bad=True,
        cache_dir=str(root.parent / "cache"),
        test=1.0,
        image_size=4,
        channels=1,
    )
    assert len(load(config, report=lines.append).skipped) == 25
    assert lines[-1] == "  and 5 more"
    assert len(lines) == 1 + 1 + 1 + 20 + 1  # what is read, cached, how many, which, and more


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
    monkeypatch.setattr("vae_jax.device.memory.available", lambda: 1 << 20)
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
    Image.new("RGB", (4, 4)).save(path, format="ico")
    refused(root, path, "cannot be decoded")
    Image.new("L", (4, 4), 7).save(path, format="tiff")  # of another format than its name says
    png(grey(7), root / "other.png")
    assert levels(read(root).train) == [7]


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
    return raw_png(width, height, 8, 0, b"")


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


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_of_any_depth_is_white(depth):
    """The same picture has the same levels whatever its bit depth."""
    most = (1 << depth) - 1
    line = np.array([0, most // 3, most, 0] * 2)
    bits = ((line[:, None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8)
    pixels = (b"\0" + np.packbits(bits.ravel()).tobytes()) * 8
    for level in {0, most // 3, most}:
        content = raw_png(8, 8, depth, 0, pixels, chunk(b"tRNS", struct.pack(">H", level)))
        expected = np.where(line == level, 255, np.rint(line * 255 / most)).astype(int)
        for channels in (1, 3):
            read = Resizer(8, channels).read(content, "image")
            np.testing.assert_array_equal(read, np.broadcast_to(expected[None, :, None], (8, 8, channels)))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_of_any_depth_is_white(depth, monkeypatch):
    """Of 16 bits all count, though Pillow keeps 8: the second pixel differs in the low ones."""
    colours = np.array([[5, 0, 60], [5, 1, 60], [5, 0, 60], [250, 200, 255]], np.uint16)
    if depth == 16:
        colours = colours * np.uint16(256)
        colours[1] = colours[0] + np.array([0, 1, 0], np.uint16)
    line = b"\0" + colours.astype(">u2" if depth == 16 else "u1").tobytes()
    content = raw_png(4, 4, depth, 2, line * 4, chunk(b"tRNS", struct.pack(">HHH", *map(int, colours[0]))))
    expected = colours >> (depth - 8)
    expected[[0, 2]] = 255
    for band in (1 << 20, 3):
        monkeypatch.setattr("vae_jax.data.resize.BAND", band)
        np.testing.assert_array_equal(Resizer(4, 3).read(content, "image"), np.broadcast_to(expected, (4, 4, 3)))


def test_alpha_of_16_bits_is_laid_over_white():
    pixels = np.array([[0, 0], [0, 65535], [65535, 0], [0, 32896]], ">u2")
    for kind, columns in ((4, [0, 1]), (6, [0, 0, 0, 1])):
        content = raw_png(4, 4, 16, kind, (b"\0" + pixels[:, columns].tobytes()) * 4)
        np.testing.assert_array_equal(Resizer(4, 1).read(content, "image")[0, :, 0], [255, 0, 255, 127])


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


def exif_of(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data in the little-endian order: entries of tag, type, count and four bytes."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)


TURNED = (0x0112, 3, 1, b"\x06\0\0\0")
XMP = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
LONG = zlib.compress(bytes(1 << 21))
ODD = {  # chunks of a PNG, and whether they say that it is turned
    "resolution as text": ([chunk(b"eXIf", exif_of(TURNED, (0x011A, 2, 4, b"abc\0")))], True),
    "resolution that is elsewhere": ([chunk(b"eXIf", exif_of(TURNED, (0x011A, 5, 1, b"\xff\xff\0\0")))], True),
    "notes that are elsewhere": ([chunk(b"eXIf", exif_of(TURNED, (0x8769, 4, 1, b"\xff\xff\xff\x7f")))], True),
    "no EXIF": ([chunk(b"eXIf", b"garbage")], False),
    "empty EXIF": ([chunk(b"eXIf", b"")], False),
    "no EXIF, but XMP": ([chunk(b"eXIf", b"garbage"), chunk(b"iTXt", XMP)], True),
    "long text": ([chunk(b"zTXt", b"a\0\0" + LONG)], False),
    "long text and XMP": ([chunk(b"zTXt", b"a\0\0" + LONG), chunk(b"iTXt", XMP)], True),
    "EXIF and long text": ([chunk(b"eXIf", exif_of(TURNED)), chunk(b"iTXt", b"a\0\1\0\0\0" + LONG)], True),
    "text of another compression": ([chunk(b"zTXt", b"a\0\7x")], False),
    "profile of another compression": ([chunk(b"iCCP", b"a\0\7x")], False),
    "long profile": ([chunk(b"iCCP", b"a\0\0" + LONG)], False),
    "no profile": ([chunk(b"iCCP", b"")], False),
    "short gamma and size": ([chunk(b"gAMA", b"\0"), chunk(b"pHYs", b"\0"), chunk(b"cHRM", b"\0")], False),
    "damaged text": ([chunk(b"tEXt", b"a\0b")[:-1] + b"!"], False),
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("last", [False, True])
def test_odd_metadata_do_not_keep_an_image_from_being_read(case, last):
    chunks, turned = ODD[case]
    levels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    pixels = b"".join(b"\0" + line.tobytes() for line in levels)
    content = raw_png(4, 4, 8, 0, pixels, *chunks)
    if last:  # after the pixels
        content = raw_png(4, 4, 8, 0, pixels)[:-12] + b"".join(chunks) + chunk(b"IEND", b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = Resizer(4, 1).read(content, "image")[..., 0]
        assert inspect(content, "image")[:3] == (4, 4, False)
    np.testing.assert_array_equal(read, np.rot90(levels, -1) if turned else levels)


@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (exif_of(TURNED, (0x011A, 2, 4, b"abc\0")), True),
        (exif_of(TURNED, (0x011A, 2, 4, b"abc\0"), (0x0128, 2, 4, b"abc\0")), True),
        (exif_of((0x0112, 2, 2, b"x\0\0\0")), False),
        (b"garbage", False),
        (b"", False),
    ],
)
@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_odd_metadata_of_other_formats(kind, exif, turned):
    levels = np.array([[0, 90], [170, 255]], np.uint8).repeat(8, 0).repeat(8, 1)
    plain, odd = (resized(levels, kind, quality=100, **more).astype(int) for more in ({}, {"exif": b"Exif\0\0" + exif}))
    np.testing.assert_allclose(odd, np.rot90(plain, -1) if turned else plain, atol=3)


@pytest.mark.parametrize(
    "segment",
    [
        *(b"\xff\xe0\0\x08JFIF\0\1", b"\xff\xe2\0\x0eICC_PROFILE\0", b"\xff\xe2\0\x0cMPF\0MM\0*\0\0"),
        b"\xff\xed\0\x16Photoshop 3.0\0" + b"8BIM\x03\xed",
        b"\xff\xe2\0\x0eICC_PROFILE\0" + b"\xff\xe1\0\x22Exif\0\0" + exif_of(TURNED),
    ],
)
def test_odd_segments_of_a_jpeg(segment):
    levels = np.array([[0, 90], [170, 255]], np.uint8).repeat(8, 0).repeat(8, 1)
    buffer = io.BytesIO()
    Image.fromarray(levels).convert("RGB").save(buffer, "jpeg", quality=100)
    content = buffer.getvalue()
    plain, odd = (Resizer(4, 3).read(data, "image") for data in (content, content[:2] + segment + content[2:]))
    np.testing.assert_array_equal(odd, np.rot90(plain, -1) if b"Exif" in segment else plain)


@pytest.mark.parametrize("tag", [270, 282, 296, 700, 34377, 34665, 34675])
@pytest.mark.parametrize("kind", [2, 4, 5, 12])
def test_odd_tags_of_a_tiff(tag, kind):
    levels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    tags = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: 16, 274: 6}
    entries = {number: struct.pack("<HHII", number, 4, 1, value) for number, value in tags.items()}
    entries[tag] = struct.pack("<HHI4s", tag, kind, 5, b"\xff\xfe\xfd\0")  # of a size or at a place that it cannot be
    directory = struct.pack("<H", len(entries)) + b"".join(entries[number] for number in sorted(entries)) + bytes(4)
    content = b"II*\0" + struct.pack("<I", 24) + levels.tobytes() + directory
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(Resizer(4, 1).read(content, "image")[..., 0], np.rot90(levels, -1))


def test_cmyk_photos(root):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    np.testing.assert_allclose(one(png(image, root / "print.jpg", quality=100), 3)[0, 0], [255, 0, 0], atol=6)


def test_any_size_is_resized_as_pillow_does(root):
    image = Image.fromarray(RANDOM.randint(0, 256, (37, 91, 3)).astype(np.uint8))
    expected = image.convert("L").resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(one(png(image, root / "wide.png"), 1, 16)[..., 0], np.asarray(expected))
