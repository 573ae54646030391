"""Any image data set of tensorflow-datasets, prepared and read without TensorFlow.

tensorflow-datasets reads its array_record files without TensorFlow, but many of its builders open their
source files with tf.io.gfile and encode images with tf.image. Both have a plain counterpart, which the
builders are given while they prepare.
"""

import contextlib
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
from vae_jax.data.cache import cache_folder
from vae_jax.data.dataset import Split
from vae_jax.data.download import limited_requests, unreachable
from vae_jax.data.lock import locked
from vae_jax.data.resize import Resizer
from vae_jax.data.source import Opened, Report, Splits, required
from vae_jax.errors import UserError

BATCH = 1000  # records read at once


def tfds(config: DataConfig, report: Report) -> Opened:
    """The data set data.name ("cifar10", "emnist/letters"); its test split is test, or else validation.

    Raises:
        UserError: data.name is not set. All else is found out on reading, which needs a slow import.
    """
    name = required(config.name, "data.name", "tfds")

    def read(resizer: Resizer) -> Splits:
        folder = cache_folder(config) / "tensorflow_datasets"
        builder = _builder(name, folder)
        image, label = _features(builder)
        if not builder.is_prepared():
            with locked(folder / f".lock-{builder.name}", name, report) as alone:
                builder = _builder(name, folder)  # another process may have prepared it since
                if not builder.is_prepared():
                    if alone:
                        _remove_abandoned(builder)
                    _prepare(builder, name, config, report)
        sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
        test = next((split for split in ("test", "validation") if sizes.get(split)), None)
        if not sizes.get("train"):
            raise UserError(f"data.name {name}: expected a train split, found {', '.join(sizes) or 'none'}")
        names = tuple(builder.info.features[label].names) if label else None
        return Splits(
            _read(builder, "train", image, label, resizer),
            _read(builder, test, image, label, resizer) if test else None,
            names,
        )

    manual = "" if config.manual_dir is None else os.path.realpath(expand(config.manual_dir))
    return Opened(name, read, (version("tensorflow-datasets"), manual))


def _builder(name: str, folder: Path) -> Any:
    """The data set's builder, made independent of TensorFlow.

    A subclass's own url_infos would be None, and then no download would be checksummed; they are handed on.
    """
    import tensorflow_datasets

    base: Any
    base_name, _, config_name = name.partition("/")
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
    """Encodes images that come as arrays with Pillow, where tensorflow-datasets would use TensorFlow."""
    for key, example in examples:
        for name, value in example.items() if isinstance(example, dict) else ():
            if isinstance(value, np.ndarray) and value.ndim == 3 and value.dtype == np.uint8:
                example[name] = Image.fromarray(value[..., 0] if value.shape[2] == 1 else value)
        yield key, example


def _features(builder: Any) -> tuple[str, str | None]:
    """The names of the image feature and of the label, which may be None."""
    from tensorflow_datasets import features as kinds

    features = dict(builder.info.features)
    images = [name for name, feature in features.items() if type(feature) is kinds.Image]
    labels = [name for name, feature in features.items() if isinstance(feature, kinds.ClassLabel)]
    image = "image" if "image" in images else images[0] if len(images) == 1 else None
    if image is None or features[image].np_dtype == np.float32:
        found = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
        raise UserError(f"data.name {builder.name}: expected one feature with 8- or 16-bit images, found {found}")
    return image, "label" if "label" in labels else labels[0] if len(labels) == 1 else None


def _prepare(builder: Any, name: str, config: DataConfig, report: Report) -> None:
    """Downloads the data set and writes it as array_record files.

    Raises:
        UserError: there is no network, a download fails, or the builder needs TensorFlow after all.
    """
    import tensorflow_datasets

    for url in list(builder.url_infos or ())[:1]:
        if not config.manual_dir and (reason := unreachable(url)):
            raise UserError(
                f"data.name {name}: {url} cannot be reached ({reason}); use files at hand with --data.source "
                "digits, folder or array"
            )
    report(f"downloading and preparing {name} in {builder.data_dir}")
    if not sys.stderr.isatty():
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
    except Exception as error:  # of requests, the file system, and whatever the builder's own code raises
        raise UserError(f"data.name {name}: it was not prepared: {_reason(error)}") from error


def _remove_abandoned(builder: Any) -> None:
    """Removes what tensorflow-datasets had half written in a process that died."""
    from tensorflow_datasets.core.constants import INCOMPLETE_PREFIX

    folder = Path(builder.data_dir)
    for left in folder.parent.glob(f"{INCOMPLETE_PREFIX}*_{glob.escape(folder.name)}"):
        shutil.rmtree(left, ignore_errors=True)


def _read(builder: Any, split: str, image: str, label: str | None, resizer: Resizer) -> Split:
    """Reads one split; Pillow decodes the images, so that they do not depend on what else is installed."""
    from tensorflow_datasets import decode as decoders
    from tensorflow_datasets import features as kinds

    skipped = {
        name: decoders.SkipDecoding() for name, kind in builder.info.features.items() if isinstance(kind, kinds.Image)
    }
    labels: list[int] = []
    try:
        records = builder.as_data_source(split, decoders=skipped)

        def images() -> Iterator[np.ndarray]:
            for start in range(0, len(records), BATCH):
                batch = range(start, min(start + BATCH, len(records)))
                for index, example in zip(batch, records.__getitems__(batch), strict=True):
                    labels.append(int(example[label]) if label else 0)
                    yield resizer.read(example[image], f"{builder.name}, {split} image {index}")

        stacked = resizer.stack(images(), len(records))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{builder.data_dir}: the prepared data set cannot be read ({_reason(error)})") from error
    labelled = label and min(labels, default=0) >= 0  # −1 stands for a label that is not given away
    return Split(stacked, np.array(labels, np.int64) if labelled else None)


class _Parts(SimpleNamespace):
    """A namespace that says which part of TensorFlow it lacks."""

    def __getattr__(self, name: str) -> Any:
        raise ImportError(f"TensorFlow's {name}")


@contextlib.contextmanager
def _plain_tensorflow() -> Iterator[None]:
    """Within it, tensorflow-datasets has what it needs of TensorFlow to unpack archives and to read files.

    Its modules share one lazy module, which imports TensorFlow only for an attribute that it does not have.
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
    """An exception's first line, as a part of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
