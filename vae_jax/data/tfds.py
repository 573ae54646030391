"""Any image data set of tensorflow-datasets, prepared and read without TensorFlow.

tensorflow-datasets reads its array_record files without TensorFlow, but many of its builders open their source files
with tf.io.gfile and encode images with tf.image. The builders get plain substitutes for both while they prepare.
"""

import contextlib
import functools
import glob
import io
import os
import shutil
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace, new_class
from typing import Any

import numpy as np
from PIL import Image

from vae_jax.config import DataConfig, expand
from vae_jax.data.cache import NO_HOME, cache_folder
from vae_jax.data.download import limited_requests, unreachable
from vae_jax.data.image_size import Kind, choose
from vae_jax.data.resize import Resizer, inspect
from vae_jax.data.source import SPLITS, Opened, Report, Splits, required
from vae_jax.data.split import Split
from vae_jax.errors import UserError, listed, on_terminal
from vae_jax.files.wait import locked

BATCH = 1000  # records read at once


def tfds(config: DataConfig, report: Report) -> Opened:
    """The data set data.name ("cifar10", "emnist/letters").

    A split called validation is the validation split, or the test split if there is no other.

    Raises:
        UserError: if data.name is not set; if data.image_size or data.channels is not set, also the errors of reading,
            since choosing them needs the slow import.
    """
    name = required(config.name, "data.name", "tfds")

    def root() -> Path:
        if (cache := cache_folder(config)) is None:
            raise UserError(f"data.name {name}: expected a folder to download into; {NO_HOME}")
        return cache / "tensorflow_datasets"

    @functools.cache
    def prepared() -> tuple[Any, str, str | None, dict[str, int]]:
        folder = root()
        builder = _builder(name, folder)
        image, label = _features(builder)
        if not builder.is_prepared():
            with locked(folder / f".lock-{builder.name}", name, report) as alone:
                builder = _builder(name, folder)  # another process may have prepared it since
                if not builder.is_prepared():
                    if alone:
                        _remove_abandoned(builder)
                    _prepare(builder, name, config, report)
        sizes = {split: info.num_examples for split, info in builder.info.splits.items() if info.num_examples}
        if "train" not in sizes:
            raise UserError(f"data.name {name}: expected a train split, found {listed(sizes) or 'none'}")
        return builder, image, label, sizes

    def read(resizer: Resizer) -> Splits:
        builder, image, label, sizes = prepared()
        named = {split: split for split in SPLITS if split in sizes}
        notes = []
        if "test" not in named and "validation" in named:
            named["test"] = named.pop("validation")
            notes.append(f"{name}: it has no test split; its validation images are the test images")
        if ignored := sorted(set(sizes) - set(named.values())):
            notes.append(f"{name}: ignoring the splits {listed(ignored)}")
        splits: dict[str, Any] = {}
        for split, source in named.items():
            images, labels = _read(builder, source, image, label, resizer)
            if labels is not None and labels.min() < 0:  # −1 stands for a label that is not given away
                notes.append(f"{name}: not all {split} images have a label, so their labels are ignored")
                labels = None
            splits[split] = Split(images, labels)
        labelled = any(split.labels is not None for split in splits.values())
        names = tuple(builder.info.features[label].names) if labelled else None
        return Splits(**splits, class_names=names, notes=tuple(notes))

    def kinds() -> list[Kind]:
        builder = _builder(name, root())
        image, _ = _features(builder)
        height, width, channels = builder.info.features[image].shape
        if None not in (height, width, channels):
            return [Kind(width, height, channels > 1, name, 0)]
        builder, image, _, sizes = prepared()
        looked = range(0, sizes["train"], -(-sizes["train"] // BATCH))  # evenly spread
        if len(looked) < sizes["train"]:
            report(
                f"{name}: looking at {len(looked):,} of {sizes['train']:,} training images for their size and colours"
            )
        with _as_user_error(builder):
            examples = _records(builder, "train").__getitems__(looked)
        return [
            inspect(example[image], f"{name}, train image {index}")
            for index, example in zip(looked, examples, strict=True)
        ]

    manual = "" if config.manual_dir is None else os.path.realpath(expand(config.manual_dir))
    fingerprint = (version("tensorflow-datasets"), manual)
    return Opened(name, read, fingerprint, *choose(config, kinds, name, report))


def _builder(name: str, folder: Path) -> Any:
    """The data set's builder, made independent of TensorFlow.

    A subclass's own url_infos would be None, and no download would be verified; so it gets its base's.
    """
    import tensorflow_datasets

    base: Any
    base_name, _, config_name = name.partition("/")
    if ":" in base_name:  # a community's, whose code may be downloaded
        raise UserError(f"data.name: expected a data set of tensorflow-datasets itself; found {name}")
    try:
        base = tensorflow_datasets.builder_cls(base_name)
    except Exception as error:  # an unknown name or namespace, or a builder that cannot be imported
        known = tensorflow_datasets.list_builders(with_community_datasets=False)
        close = get_close_matches(base_name, known, n=3)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise UserError(f"data.name: expected a data set of tensorflow-datasets, found {base_name}{hint}") from error

    def generate(self, *args, **kwargs):
        examples = base._generate_examples(self, *args, **kwargs)
        return _encoded(examples) if isinstance(examples, Iterator) else examples

    body = {"name": base.name, "url_infos": base.url_infos, "_generate_examples": generate}
    try:
        cls = new_class(
            base.__name__,
            (base,),
            {"skip_registration": True},
            lambda ns: ns.update(body, __module__=base.__module__),
        )
        return cls(data_dir=folder, config=config_name or None)
    except Exception as error:
        raise UserError(f"data.name {name}: the data set cannot be opened ({_reason(error)})") from error


def _encoded(examples: Iterator) -> Iterator:
    """Encodes images that are arrays with Pillow, since tensorflow-datasets would use TensorFlow."""
    for key, example in examples:
        for name, value in example.items() if isinstance(example, dict) else ():
            if isinstance(value, np.ndarray) and value.ndim == 3 and value.dtype == np.uint8:
                example[name] = Image.fromarray(value[..., 0] if value.shape[2] == 1 else value)
        yield key, example


def _features(builder: Any) -> tuple[str, str | None]:
    """The names of the image feature and of the label, which is None if there is none."""
    from tensorflow_datasets import features as kinds

    features = dict(builder.info.features)
    images = [name for name, feature in features.items() if type(feature) is kinds.Image]
    labels = [name for name, feature in features.items() if isinstance(feature, kinds.ClassLabel)]
    image = "image" if "image" in images else images[0] if len(images) == 1 else None
    if image is None or features[image].np_dtype == np.float32:
        known = listed(f"{name} ({type(feature).__name__})" for name, feature in features.items())
        raise UserError(f"data.name {builder.name}: expected one feature with 8- or 16-bit images, found {known}")
    return image, "label" if "label" in labels else labels[0] if len(labels) == 1 else None


def _prepare(builder: Any, name: str, config: DataConfig, report: Report) -> None:
    """Downloads the data set and writes it as array_record files.

    Raises:
        UserError: if there is no network, a download fails, or the builder needs TensorFlow after all.
    """
    import tensorflow_datasets

    for url in list(builder.url_infos or ())[:1]:
        if not config.manual_dir and (reason := unreachable(url)):
            raise UserError(
                f"data.name {name}: {url} cannot be reached ({reason}); use files at hand with data.source "
                "digits, folder or array"
            )
    report(f"downloading and preparing {name} in {builder.data_dir}")
    if not on_terminal(sys.stderr):
        tensorflow_datasets.disable_progress_bar()
    manual_dir = config.manual_dir and expand(config.manual_dir)
    options = tensorflow_datasets.download.DownloadConfig(manual_dir=manual_dir)
    try:
        # tensorflow-datasets prints to stdout, which belongs to the program
        with contextlib.redirect_stdout(io.StringIO()), limited_requests(), _plain_tensorflow():
            builder.download_and_prepare(download_config=options, file_format="array_record")
    except ImportError as error:
        raise UserError(
            f"data.name {name}: preparing it needs another package ({_reason(error)}); with it, "
            f"run 'tfds build {name} --file_format=array_record --data_dir={builder.data_dir_root}'"
        ) from error
    except Exception as error:  # from requests, the file system or the builder's code
        raise UserError(f"data.name {name}: it was not prepared: {_reason(error)}") from error


def _remove_abandoned(builder: Any) -> None:
    """Removes the half-written files of a process that died."""
    from tensorflow_datasets.core.constants import INCOMPLETE_PREFIX

    folder = Path(builder.data_dir)
    for left in folder.parent.glob(f"{INCOMPLETE_PREFIX}*_{glob.escape(folder.name)}"):
        shutil.rmtree(left, ignore_errors=True)


def _records(builder: Any, split: str) -> Any:
    """The examples of one split, with undecoded images."""
    from tensorflow_datasets import decode as decoders
    from tensorflow_datasets import features as kinds

    skipped = {
        name: decoders.SkipDecoding() for name, kind in builder.info.features.items() if isinstance(kind, kinds.Image)
    }
    return builder.as_data_source(split, decoders=skipped)


def _read(
    builder: Any, split: str, image: str, label: str | None, resizer: Resizer
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads one split; Pillow decodes the images, so that they do not depend on other packages."""
    labels: list[int] = []
    with _as_user_error(builder):
        records = _records(builder, split)

        def images() -> Iterator[np.ndarray]:
            for start in range(0, len(records), BATCH):
                batch = range(start, min(start + BATCH, len(records)))
                for index, example in zip(batch, records.__getitems__(batch), strict=True):
                    labels.append(int(example[label]) if label else 0)
                    yield resizer.read(example[image], f"{builder.name}, {split} image {index}")

        stacked = resizer.stack(images(), len(records), split)
    return stacked, np.array(labels, np.int64) if label else None


@contextlib.contextmanager
def _as_user_error(builder: Any) -> Iterator[None]:
    """A context that turns errors of reading a damaged data set into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{builder.data_dir}: the prepared data set cannot be read ({_reason(error)})") from error


class _Parts(SimpleNamespace):
    """A namespace that names the part of TensorFlow that it lacks."""

    def __getattr__(self, name: str) -> Any:
        raise ImportError(f"TensorFlow's {name}")


@contextlib.contextmanager
def _plain_tensorflow() -> Iterator[None]:
    """A context in which tensorflow-datasets can unpack archives and read files without TensorFlow.

    Its modules share one lazy module, which imports TensorFlow only for an attribute that it lacks.
    """
    from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow

    gfile = _Parts(
        GFile=open,
        exists=os.path.exists,
        isdir=os.path.isdir,
        makedirs=lambda path: os.makedirs(path, exist_ok=True),
        listdir=lambda path: sorted(os.listdir(path)),
        glob=lambda pattern: sorted(glob.glob(os.fspath(pattern))),
        walk=os.walk,
    )
    parts = {"io": _Parts(gfile=gfile), "compat": _Parts(as_text=os.fsdecode, as_bytes=os.fsencode)}
    tensorflow.__dict__.update(parts)
    try:
        yield
    finally:
        for name in parts:
            del tensorflow.__dict__[name]


def _reason(error: Exception) -> str:
    """The first line of an exception's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
