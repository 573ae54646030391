"""Data sets of tensorflow-datasets, without TensorFlow."""

import contextlib
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets
from data_fixtures import png_bytes, serving
from PIL import Image
from tensorflow_datasets import features
from tensorflow_datasets.image_classification.cifar import Cifar10

from vae_jax.config import DataConfig
from vae_jax.data import load, resolve
from vae_jax.data.tfds import _builder, tfds
from vae_jax.errors import UserError

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.randint(0, 256, (12, 6, 6, 3)).astype(np.uint8)


class VaeTiny(tensorflow_datasets.core.GeneratorBasedBuilder):
    """A data set that downloads nothing; its configuration says which features and splits it has."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tensorflow_datasets.core.BuilderConfig(name=name, version="1.0.0")
        for name in (
            "pil",
            "array",
            "grey",
            "plain",
            "validation",
            "all_three",
            "unlabelled",
            "sizes",
            "no_test",
            "no_train",
            "two",
            "none",
            "tf",
            "broken",
        )
    ]

    def _info(self):
        kind = self.builder_config.name
        shape = {"grey": (6, 6, 1), "sizes": (None, None, 3)}.get(kind, (6, 6, 3))
        feature = {"image": features.Image(shape=shape), "label": features.ClassLabel(names=["even", "odd"])}
        if kind == "plain":
            feature = {"picture": feature["image"], "text": features.Text()}
        elif kind == "two":
            feature = {"left": feature["image"], "right": feature["image"]}
        elif kind == "none":
            feature = {"text": features.Text()}
        return tensorflow_datasets.core.DatasetInfo(builder=self, features=features.FeaturesDict(feature))

    def _split_generators(self, dl_manager):
        names = {"validation": ("train", "validation"), "no_test": ("train",), "no_train": ("test",)}
        names["all_three"] = ("train", "test", "validation", "extra")
        return {name: self._generate_examples(name) for name in names.get(self.builder_config.name, ("train", "test"))}

    def _generate_examples(self, split):
        kind = self.builder_config.name
        if kind == "tf":
            raise ImportError("No module named 'tensorflow'")
        for index, image in enumerate(IMAGES[:8] if split == "train" else IMAGES[8:]):
            if kind == "array":
                yield index, {"image": image, "label": index % 2}
            elif kind == "grey":
                yield index, {"image": image[..., :1], "label": index % 2}
            elif kind == "plain":
                yield index, {"picture": io.BytesIO(png_bytes(image)), "text": "some text"}
            elif kind == "unlabelled":
                yield index, {"image": Image.fromarray(image), "label": -1 if split == "test" else index % 2}
            elif kind == "sizes":
                yield index, {"image": Image.fromarray(image).resize((9, 7 + index % 3)), "label": index % 2}
            elif kind == "broken":
                yield index, {"image": io.BytesIO(b"no image"), "label": 0}
            else:
                yield index, {"image": Image.fromarray(image), "label": index % 2}


class VaeCifar(Cifar10):
    """CIFAR-10's own builder, with other files."""

    address = ""

    @property
    def _cifar_info(self):
        return super()._cifar_info._replace(url=self.address)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """A developer's proxy has no business with the loopback interface."""
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def config(tmp_path):
    def make(name: str, **options) -> DataConfig:
        options = {"image_size": 6, "channels": 3, **options}
        return DataConfig(source="tfds", name=name, cache_dir=str(tmp_path / "cache"), **options)

    return make


def refused(config: DataConfig) -> str:
    with pytest.raises(UserError) as error:
        load(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def rows(images: np.ndarray) -> list[bytes]:
    """Images in an order of their own: tensorflow-datasets shuffles them."""
    return sorted(image.tobytes() for image in images)


@pytest.mark.parametrize("kind", ["pil", "array", "plain", "validation"])
def test_images_and_labels(kind, config, capfd):
    data = load(config(f"vae_tiny/{kind}"))
    assert rows(data.train.images) == rows(IMAGES[:8])
    assert rows(data.test.images) == rows(IMAGES[8:])
    if kind == "plain":
        assert (data.train.labels, data.class_names) == (None, None)
    else:
        assert data.class_names == ("even", "odd")
        known = {image.tobytes(): index % 2 for index, image in enumerate(IMAGES)}
        for split in (data.train, data.test):
            assert [known[image.tobytes()] for image in split.images] == split.labels.tolist()
    assert "tensorflow" not in sys.modules
    assert capfd.readouterr().out == ""


def test_grey_images(config):
    data = load(config("vae_tiny/grey", channels=1))
    assert rows(data.train.images) == rows(IMAGES[:8, ..., :1])


@pytest.mark.parametrize(
    ("kind", "expected", "said"),
    [
        ("pil", (6, 6, 3), "data.image_size 6 and data.channels 3, chosen for images of 6x6, in colour"),
        ("grey", (6, 6, 1), "data.image_size 6 and data.channels 1, chosen for images of 6x6, grey"),
        (
            "sizes",
            (8, 8, 3),
            "chosen for 8 images of 9x7 to 9x9, in colour; those not square (width x height) are stretched",
        ),
    ],
)
def test_size_and_channels_are_the_images_own(kind, expected, said, config):
    lines = []
    data = load(config(f"vae_tiny/{kind}", image_size=None, channels=None), report=lines.append)
    assert data.image_shape == expected
    assert any(said in line for line in lines)


def test_how_many_images_are_looked_at_is_said(config, monkeypatch):
    monkeypatch.setattr("vae_jax.data.tfds.BATCH", 3)
    lines = []
    resolve(config("vae_tiny/sizes", image_size=None, channels=None), report=lines.append)
    assert "vae_tiny/sizes: looking at 3 of 8 training images for their size and colours" in lines
    assert any("chosen for 3 images of" in line for line in lines)


def test_what_becomes_of_the_splits_is_said(config):
    for _ in range(2):  # prepared, and from the cache
        lines = []
        data = load(config("vae_tiny/all_three"), report=lines.append)
        assert (len(data.train), len(data.test), len(data.validation)) == (8, 4, 4)
        assert rows(data.validation.images) == rows(IMAGES[8:])
        assert "vae_tiny/all_three: ignoring the splits extra" in lines
        lines = []
        assert load(config("vae_tiny/validation"), report=lines.append).validation is None
        assert "vae_tiny/validation: it has no test split; its validation images are the test images" in lines
        lines = []
        data = load(config("vae_tiny/unlabelled"), report=lines.append)
        assert (data.test.labels, sorted(data.train.labels)) == (None, [0] * 4 + [1] * 4)
        assert "vae_tiny/unlabelled: not all test images have a label, so their labels are ignored" in lines
    with pytest.raises(UserError, match=r"data\.validation: expected 0, since vae_tiny/all_three has a val"):
        load(config("vae_tiny/all_three", validation=0.1))


def test_without_a_test_split_some_are_held_out(config):
    data = load(config("vae_tiny/no_test", test=3.0))
    assert (len(data.train), len(data.test)) == (5, 3)


def test_what_is_prepared_is_not_prepared_again(config, monkeypatch):
    first = load(config("vae_tiny/pil"))
    monkeypatch.setattr(VaeTiny, "_split_generators", None)
    again = load(replace(config("vae_tiny/pil"), image_size=12))
    assert again.image_shape == (12, 12, 3)
    np.testing.assert_array_equal(first.train.labels, again.train.labels)
    assert again.class_names == ("even", "odd")


def test_another_process_may_have_prepared_it_meanwhile(config, monkeypatch):
    """While this one waited for the lock."""
    from vae_jax.data import tfds as module

    images = config("vae_tiny/pil")
    expected, cache = load(images), Path(images.cache_dir)
    shutil.rmtree(cache / "images")
    (data_dir,) = cache.glob("tensorflow_datasets/vae_tiny/pil/*")
    data_dir.rename(data_dir.with_name("elsewhere"))

    @contextlib.contextmanager
    def waited(*args):
        data_dir.with_name("elsewhere").rename(data_dir)
        yield True

    monkeypatch.setattr(module, "locked", waited)
    monkeypatch.setattr(module, "_prepare", None)
    np.testing.assert_array_equal(load(images).train.images, expected.train.images)


def test_what_a_killed_preparation_left_is_removed(config):
    folder = Path(config("").cache_dir) / "tensorflow_datasets" / "vae_tiny" / "pil"
    left = folder / "incomplete.ABC123_1.0.0"
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    load(config("vae_tiny/pil"))
    assert [path.name for path in folder.iterdir()] == ["1.0.0"]
    assert not list((folder.parent.parent).glob(".lock*"))


def test_the_cache_needs_no_tensorflow_datasets(config):
    expected = load(config("vae_tiny/pil")).train.images.sum()
    code = (
        "import sys; from vae_jax.config import DataConfig; from vae_jax.data import load; "
        f"print(load({config('vae_tiny/pil')!r}).train.images.sum()); "
        "assert 'tensorflow_datasets' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cifar1", "did you mean cifar10"),
        ("nothing like it", "expected a data set of tensorflow-datasets"),
        ("someone:else", "expected a data set of tensorflow-datasets itself"),
        ("vae_tiny/missing", "cannot be opened"),
        ("vae_tiny/two", "found left (Image), right (Image)"),
        ("vae_tiny/none", "found text (Text)"),
        ("vae_tiny/no_train", "expected a train split, found test"),
        ("vae_tiny/tf", "tfds build vae_tiny/tf --file_format=array_record"),
        ("vae_tiny/broken", "image 0: expected an image (PNG"),
        ("imdb_reviews", "expected one feature with"),
    ],
)
def test_what_cannot_be_read_is_refused(name, reason, config):
    assert reason in refused(config(name))


def cifar(images: int) -> bytes:
    """A small archive like CIFAR-10's."""
    buffer = io.BytesIO()
    files = {"batches.meta.txt": "\n".join(f"class{label}" for label in range(10)).encode()}
    for batch in [
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
    ]:
        files[f"{batch}.bin"] = b"".join(bytes([label % 10]) + RANDOM.bytes(3072) for label in range(images))
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def cifar_server(monkeypatch):
    """CIFAR-10's builder downloads from here; it opens files with tf.io.gfile and yields arrays."""
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.core.utils import Size

    name = "cifar-10-binary.tar.gz"
    with serving({name: cifar(4)}) as server:
        content = server.files[name]
        info = UrlInfo(size=Size(len(content)), checksum=hashlib.sha256(content).hexdigest(), filename=name)
        monkeypatch.setattr(VaeCifar, "address", f"{server.url}/{name}")
        monkeypatch.setattr(VaeCifar, "url_infos", {VaeCifar.address: info})
        yield server


def test_a_builder_that_reads_with_tensorflow_is_prepared_without(cifar_server, config):
    from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow

    data = load(config("vae_cifar", image_size=32))
    assert (len(data.train), len(data.test)) == (20, 4)
    assert data.class_names[3] == "class3"
    assert sorted(data.train.labels.tolist()) == sorted([0, 1, 2, 3] * 5)
    assert "io" not in vars(tensorflow)
    assert "tensorflow" not in sys.modules
    asked = len(cifar_server.requests)
    load(config("vae_cifar", image_size=16))
    assert len(cifar_server.requests) == asked


def test_a_wrong_checksum_is_refused(cifar_server, config, tmp_path):
    (name,) = cifar_server.files
    cifar_server.files[name] = cifar(3)
    assert "wrong checksum" in refused(config("vae_cifar"))
    assert not list((tmp_path / "cache").rglob("*.array_record*"))


def test_checksums_are_handed_on(tmp_path):
    """Those of a subclass are none, and then nothing would be verified."""
    for name in ("cifar10", "svhn_cropped", "emnist/letters"):
        infos = _builder(name, tmp_path).url_infos
        assert infos
        assert infos == tensorflow_datasets.builder_cls(name.split("/")[0]).url_infos


def test_offline_is_noticed_quickly(config, monkeypatch):
    monkeypatch.setattr(VaeCifar, "address", "http://127.0.0.1:1/file")
    monkeypatch.setattr(VaeCifar, "url_infos", {VaeCifar.address: None})
    start = time.monotonic()
    assert "cannot be reached" in refused(config("vae_cifar"))
    assert time.monotonic() - start < 10


def test_opening_is_quick(config):
    """Nothing is imported or looked up before the images are needed."""
    opened = tfds(config("no such data set"), lambda line: None)
    assert opened.name == "no such data set"
