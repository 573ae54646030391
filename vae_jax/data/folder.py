"""Image files in a folder, whose own folders are the classes."""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vae_jax.config import DataConfig, expand
from vae_jax.data.image_size import Kind, choose
from vae_jax.data.resize import FORMATS, READ, BadImage, Resizer, inspect
from vae_jax.data.source import SPLIT_OF, Opened, Report, Splits, required
from vae_jax.data.split import Split
from vae_jax.errors import UserError, counted, listed

FORMAT_OF = {ending: kind for kind, endings in FORMATS.items() for ending in endings}
SAMPLE = 1000  # images, evenly spread, whose colours are examined to choose the channels
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # in a folder's name: train2017, images_train, TrainSet
Classes = dict[str, list[Path]]  # images by class, in order; the class "" holds images without a label


def folder(config: DataConfig, report: Report) -> Opened:
    """Images labelled by their folder in data.path; those directly in data.path have no label.

    If data.path holds a folder train, and test, validation or both beside it, these are the splits; so are folders
    whose names mean the same by a word in `SPLIT_OF`. Reports which splits and classes are read. Leaves out hidden
    files, and, with a report, files that are no images and folders without images; with data.skip_bad also images that
    cannot be used.

    Raises:
        UserError: if there is no such folder, it has no image, only some images have a label, or its splits are
            ambiguous.
    """
    root = expand(required(config.path, "data.path", "folder"))
    if not root.is_dir():
        raise UserError(f"data.path {root}: expected a folder, found {'a file' if root.exists() else 'nothing'}")
    root = root.resolve()  # the same data set by any of its paths
    ignored: list[Path] = []
    try:
        folders = _splits(root, ignored, report)
        classes_of = {name: _classes(folder, ignored, report, folder != root) for name, folder in folders.items()}
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    paths = [path for classes in classes_of.values() for images in classes.values() for path in images]
    _report_files(root, paths, ignored, report)
    _report_splits(root, folders, classes_of, config, report)
    faults: dict[Path, str] = {}
    fingerprint = []
    for path in paths:
        try:
            fingerprint += _state(path)
        except BadImage as error:
            if not config.skip_bad:
                raise
            faults[path] = str(error)
            fingerprint.append(str(error))

    def read(resizer: Resizer) -> Splits:
        bad = dict(faults)
        arrays = {name: _stack(name, classes, resizer, bad, config.skip_bad) for name, classes in classes_of.items()}
        kept = {
            split: {name: good for name, images in classes.items() if (good := [i for i in images if i not in bad])}
            for split, classes in classes_of.items()
        }
        for split, classes in kept.items():
            if not classes:
                some = [bad[path] for images in classes_of[split].values() for path in images]
                raise UserError(
                    f"{folders[split]}: expected images that can be used, found none among {len(some):,}; {some[0]}"
                )
        names = tuple(sorted({name for classes in kept.values() for name in classes} - {""}))
        splits: dict[str, Any] = {name: Split(arrays[name], _labels(classes, names)) for name, classes in kept.items()}
        return Splits(**splits, class_names=names or None, skipped=tuple(bad[path] for path in sorted(bad)))

    def kinds() -> list[Kind]:
        good = [path for path in paths if path not in faults]
        kinds_seen: list[Kind] = []
        step, colour = -(-len(good) // SAMPLE), False
        if step > 1:
            report(f"{root}: looking at the sizes of {len(good):,} images")
        for number, path in enumerate(good):
            try:
                kinds_seen.append(inspect(path, str(path), look=not colour and number % step == 0))
                colour = colour or kinds_seen[-1].colour
            except BadImage:
                if not config.skip_bad:
                    raise
        if not kinds_seen:
            raise UserError(f"{root}: expected images that can be used, found none among {len(paths):,}")
        return kinds_seen

    return Opened(root.name, read, tuple(fingerprint), *choose(config, kinds, str(root), report))


def _splits(root: Path, ignored: list[Path], report: Report) -> dict[str, Path]:
    """The splits' folders: those in `root` with such names, or `root` itself for the training images.

    Names that only contain a split's word count if they mean training images and others, unless some folder's name is
    such a word and others are no split's: then only exact names count.

    Args:
        root: the folder that holds them.
        ignored: gets the files beside them.
        report: gets a line if a folder called train is taken for a class.

    Raises:
        UserError: if a split has two folders or train is missing, or there are other images beside them.
    """
    beside: list[Path] = []
    entries = _visible(root, beside)
    names = [entry.name for entry in entries if entry.is_dir()]
    if not any(map(_split_in, names)):
        return {"train": root}
    seen = _identities_above(root)
    holding = {entry.name for entry in entries if _images(entry, set(seen), [])}
    exact = {name: split for name in names if (split := SPLIT_OF.get(name.lower()))}
    split_of = {name: split for name in names if (split := _split_in(name))}
    if not {"train"} < set(split_of.values()) or (exact and holding - set(split_of)):
        split_of = exact
    known: dict[str, list[Path]] = {}
    for name, split in split_of.items():
        known.setdefault(split, []).append(root / name)
    split_folders = [folder for folders in known.values() for folder in folders]
    if not split_folders or ("train" not in known and not any(folder.name in holding for folder in split_folders)):
        return {"train": root}
    strange = [entry for entry in entries if entry not in split_folders and _images(entry, set(seen), beside)]
    only_folders = strange and all(entry.is_dir() for entry in strange)
    if (
        only_folders
        and list(known) == ["train"]
        and len(split_folders) == 1
        and any(_is_image(entry) for entry in known["train"][0].iterdir())
    ):
        report(
            f"{root}: the folder {split_folders[0].name} is taken for a class, as {strange[0].name} beside it is one"
        )
        return {"train": root}
    if "train" not in known or len(split_folders) > len(known) or strange:
        meant = f"{split_folders[0].name} is read as the {next(iter(known))} split; rename it if it is a class"
        raise UserError(
            f"{root}: expected a folder for each class, or a folder train with nothing but one test and one validation "
            f"folder beside it ({meant}), found {listed([entry.name for entry in (*split_folders, *strange)])}"
        )
    ignored += beside
    return {split: folder for split, (folder,) in known.items()}


def _classes(folder: Path, ignored: list[Path], report: Report, is_split: bool) -> Classes:
    """The images of one split by class; `ignored` gets the other files."""
    entries = _visible(folder, ignored)
    direct = [entry for entry in entries if _is_image(entry)]
    ignored += [entry for entry in entries if not entry.is_dir() and not _is_image(entry)]
    seen = _identities_above(folder)
    by_class = {entry.name: _images(entry, set(seen), ignored) for entry in entries if entry.is_dir()}
    classes = {name: images for name, images in by_class.items() if images}
    if direct and classes:
        raise UserError(
            f"{folder}: expected images in it or in its folders, found both ({direct[0].name} and the folder "
            f"{next(iter(classes))})"
        )
    if not direct and not classes:
        raise UserError(
            f"{folder}: expected images ({READ}) in it or in its folders, found none{_ignored_text(ignored, folder)}"
        )
    _check_no_splits(folder, classes, is_split)
    if classes and (empty := [name for name in by_class if name not in classes]):
        report(f"{folder}: folders without images are no classes: {listed(empty)}")
    return classes or {"": direct}


def _split_in(name: str) -> str | None:
    """The split meant by a word of a folder's name; None without such a word, or if several words differ."""
    splits = {SPLIT_OF[word.lower()] for word in WORD.findall(name) if word.lower() in SPLIT_OF}
    return splits.pop() if len(splits) == 1 else None


def _check_no_splits(folder: Path, classes: Classes, is_split: bool) -> None:
    """Refuses classes that contain splits, which would be mixed: data.path is a level too high or too low.

    A single folder train may be a vehicle, beside bus and tram. In a split's folder a class with the name of a split
    holds no folders.

    Raises:
        UserError: naming the folder that holds them.
    """
    within: dict[str, Path] = {}
    exact: set[str] = set()
    depth = 0 if is_split else 1
    for place in sorted({image.parent.relative_to(folder) for images in classes.values() for image in images}):
        for below in (place, *place.parents):
            if len(below.parts) > depth and (split := _split_in(below.name)):
                within.setdefault(split, below)
                exact |= {split} if below.name.lower() in SPLIT_OF and len(below.parts) > 1 else set()
    holding = {_split_in(name) for name, images in classes.items() for image in images if image.parent != folder / name}
    if {"train"} < set(within) or exact - {"train"} or (is_split and holding - {None}):
        places = listed(within.values())
        raise UserError(
            f"{folder}: expected a folder for each class without splits in it, found {places}; name the folder that "
            f"holds the splits as data.path, lay them above the classes, or rename what is none"
        )


def _images(folder: Path, seen: set[tuple[int, int]], ignored: list[Path]) -> list[Path]:
    """All images below a folder, by name; enters no folder twice, so links cannot loop.

    `ignored` gets the other files.
    """
    images, waiting = [], [folder]
    while waiting:
        entry = waiting.pop()
        if entry.is_dir():
            if (place := _identity(entry)) not in seen:
                seen.add(place)
                waiting += reversed(_visible(entry, ignored))
        elif _is_image(entry):
            images.append(entry)
        else:
            ignored.append(entry)
    return images


def _report_splits(
    root: Path, folders: dict[str, Path], classes_of: dict[str, Classes], config: DataConfig, report: Report
) -> None:
    """Reports the folders read as splits and as classes, and their numbers of images."""
    counts: Counter[str] = Counter()
    parts = []
    for split, classes in classes_of.items():
        counts.update({name: len(images) for name, images in classes.items()})
        count = sum(map(len, classes.values()))
        place = "" if folders[split] == root else f"the {split} images are those in {folders[split].name}, "
        parts.append(f"{place}{counted(count, 'image')}")
    if "validation" in folders and "test" not in folders:
        parts.append(f"as there is no test folder, test images are held out of the training images ({config.test:g})")
    number = len(counts.keys() - {""})
    names = listed(f"{name} ({count:,})" for name, count in sorted(counts.items()) if name)
    parts.append(f"{counted(number, 'class', 'classes')}: {names}" if number else "no classes")
    report(f"{root}: {'; '.join(parts)}")


def _report_files(root: Path, paths: Sequence[Path], ignored: Sequence[Path], report: Report) -> None:
    """Reports the images' formats, if there are several, and the files left out."""
    formats = Counter(FORMAT_OF[path.suffix.lower()] for path in paths)
    if ignored or len(formats) > 1:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in formats.most_common())
        report(f"{root}: {counted(len(paths), 'image')} ({kinds}){_ignored_text(ignored, root)}")


def _ignored_text(ignored: Sequence[Path], root: Path) -> str:
    """The files left out, by ending, with the first of every kind; empty if there are none."""
    kinds: dict[str, list[Path]] = {}
    for path in ignored:
        hidden = "hidden" if path.name.startswith(".") else ""
        kinds.setdefault(hidden or path.suffix.lower() or "without an ending", []).append(path)
    some = [f"{len(paths):,} {kind} ({os.path.relpath(paths[0], root)})" for kind, paths in kinds.items()]
    if not ignored:
        return ""
    return f"; left out {'is' if len(ignored) == 1 else 'are'} {counted(len(ignored), 'other file')}: {listed(some)}"


def _identities_above(folder: Path) -> set[tuple[int, int]]:
    return {_identity(place) for place in (folder, *folder.parents)}


def _identity(folder: Path) -> tuple[int, int]:
    """A folder's device and inode, which links to it share."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _visible(folder: Path, ignored: list[Path]) -> list[Path]:
    """The visible entries of a folder, by name; `ignored` gets hidden images."""
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    # On other systems' disks macOS keeps a file named ._NAME beside NAME.
    ignored += [
        entry for entry in entries if entry.name.startswith(".") and entry.name[1:2] != "_" and _is_image(entry)
    ]
    return [entry for entry in entries if not entry.name.startswith(".")]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in FORMAT_OF and not path.is_dir()


def _state(path: Path) -> tuple[str, ...]:
    """The state by which a change of an image file shows. Refuses a pipe or a device, since reading it could block."""
    try:
        status = path.stat()
    except OSError as error:
        raise BadImage(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadImage(f"{path}: expected an image file, found a special file")
    return str(path), str(status.st_size), str(status.st_mtime_ns), str(os.access(path, os.R_OK))


def _stack(split: str, classes: Classes, resizer: Resizer, bad: dict[Path, str], skip: bool) -> np.ndarray:
    """Decodes the good images of one split, class by class; adds the bad ones that it discovers to `bad`."""
    paths = [path for images in classes.values() for path in images]

    def images() -> Iterator[np.ndarray | None]:
        for path in paths:
            image = None
            try:
                image = None if path in bad else resizer.read(path, str(path))
            except BadImage as error:
                if not skip:
                    raise
                bad[path] = str(error)
            yield image

    return resizer.stack(images(), len(paths), split)


def _labels(classes: Classes, names: tuple[str, ...]) -> np.ndarray | None:
    if "" in classes:
        return None
    return np.array([names.index(name) for name, images in classes.items() for _ in images], np.int64)
