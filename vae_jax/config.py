"""What a run is made of: frozen dataclasses, filled from a YAML file in `configs/` and from overrides.

Nothing here imports jax, so the command line can teach and refuse without waiting for it.
"""

import difflib
import functools
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path, PurePath
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args

from vae_jax import checked
from vae_jax.checked import within
from vae_jax.errors import UserError, brief, cut, quoted
from vae_jax.registry import lookup

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SIZE_LIMIT = 1 << 17  # bytes of a YAML file or of a flag's value
PARTS_LIMIT = 10_000  # names, values and brackets in it; more take seconds
TEXT_LIMIT = 4096  # characters of a name or a path
COUNT_LIMIT = 64  # numbers in a list
NO_DECIMAL = re.compile(r"[-+]?(0[0-9_box][0-9a-fA-F_]*|[0-9][0-9_]*(:[0-9]+)+\.?[0-9_]*)")  # 017, 0x1F, 1:30
YAML = "plain_yaml"  # jsonargparse's name for our way to read YAML
LIST = tuple[int, ...]
KINDS = checked.KINDS | {LIST: "a list of whole numbers"}  # what options may be, in words
Option = int | float | str | bool | None | list[int]  # an option's value as JSON gives it back


def _require(section: Any, **expectations: str) -> None:
    """Makes options what their types say, and checks numbers against a range, written as in mathematics: "[0, 1)".

    Raises:
        UserError: naming the option, what was expected and what was found.
    """
    for name, option, kinds in _options(type(section)):
        value = getattr(section, name)
        fine = type(value) in kinds and (type(value) is not str or (len(value) < 80 and value.isprintable()))
        if not fine and value is not getattr(type(section), name, None):  # thousands are made: what is fine is left
            object.__setattr__(section, name, _value(option, kinds, value))
    for name, interval in expectations.items():
        found = getattr(section, name)
        for value in found if isinstance(found, tuple) else (found,):
            if value is None:
                continue
            if not within(value, interval):
                raise UserError(f"{_option(section, name)}: expected a number in {interval}; found {value!s:.40}")


@functools.cache
def _options(section: type) -> list[tuple[str, str, tuple[Any, ...]]]:
    """A section's options: their names, their dotted names, and what they may be, each one of KINDS."""
    return [
        (option.name, _option(section, option.name), (option.type,) if option.type in KINDS else get_args(option.type))
        for option in fields(section)
        if not is_dataclass(option.type)
    ]


def _value(option: str, kinds: tuple[Any, ...], value: Any) -> Any:
    """An option's value as one of what it may be. Text is read as YAML, unless the option may be text.

    Raises:
        UserError: if it is none of them, or too long or too large.
    """
    read = _read_text(option, value) if isinstance(value, str) and str not in kinds else value
    if LIST in kinds and isinstance(read, list | tuple) and len(read) > COUNT_LIMIT:
        raise UserError(f"{option}: expected at most {COUNT_LIMIT} numbers; found {len(read):,}")
    found = _as_one_of(kinds, read)
    if found is ...:
        values = read if isinstance(read, list | tuple) else [read]
        strange = [each for each in values if isinstance(each, str) and NO_DECIMAL.fullmatch(each)]
        if strange and str not in kinds:
            raise UserError(f"{option}: expected a decimal number; found {strange[0]:.60}")
        wanted = "a value" if read is None else " or ".join(KINDS[kind] for kind in kinds)
        raise UserError(f"{option}: expected {wanted}; found {_shown(value)}")
    if isinstance(found, str) and len(found) > TEXT_LIMIT:
        raise UserError(f"{option}: expected at most {TEXT_LIMIT:,} characters; found {len(found):,}")
    if isinstance(found, str) and "\0" in found:
        raise UserError(f"{option}: expected at most {TEXT_LIMIT:,} characters; found a null character")
    if isinstance(found, str) and not found.isascii() and found != found.encode(errors="replace").decode():
        raise UserError(f"{option}: expected text in UTF-8; found {found!a:.60}")  # a path in another encoding, say
    if isinstance(read, int) and abs(read) > 1e308:
        raise UserError(f"{option}: expected a number below 1e308; found one too large")
    return found


def _read_text(option: str, text: str) -> Any:
    """What a text is as YAML; the text itself where it is none."""
    import yaml

    if len(text) > SIZE_LIMIT:
        raise UserError(f"{option}: expected at most {SIZE_LIMIT:,} characters; found {len(text):,}")
    try:
        return _load_yaml(text)
    except (yaml.YAMLError, ValueError):
        return text


def _as_one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    """A value as one of these kinds; an ellipsis where it is none of them."""
    if getattr(value, "shape", None) == ():  # NumPy's numbers are as good
        value = value.item()
    if type(value) in kinds:
        return value
    if type(value) is int and float in kinds:
        return float(value) if abs(value) <= 1e308 else math.inf
    if isinstance(value, PurePath) and str in kinds:
        return str(value)
    if isinstance(value, list | tuple) and LIST in kinds:
        numbers = tuple(_as_one_of((int,), number) for number in value)
        return ... if ... in numbers else numbers
    return ...


def _shown(value: Any) -> str:
    """A value on one line of bounded length."""
    if value is None:
        return "null"
    try:
        return cut(" ".join(str(value).split())) or "nothing"
    except ValueError:  # a whole number of very many digits
        return "one too large"


def _option(section: Any, name: str) -> str:
    """An option's dotted name, of a section or of its type."""
    kind = section if isinstance(section, type) else type(section)
    return f"{kind.__name__.removesuffix('Config').lower()}.{name}".removeprefix(".")


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and what is done to them before training.

    Attributes:
        source: digits (bundled, no download), mnist, fashion_mnist, kmnist, tfds (any other image data set of
            tensorflow-datasets, see data.name), folder (image files) or array (an .npy or .npz file).
        name: the data set's name where data.source is tfds, for example cifar10 or emnist/letters.
        path: the folder, or the .npy or .npz file, where data.source is folder or array.
        manual_dir: a folder with files downloaded by hand; for the MNIST family manual_dir/<data set>/ is looked at
            first, then manual_dir itself. Checksums are verified.
        cache_dir: where downloads and resized images are kept; by default vae_jax in the user's cache folder.
        image_size: images are resized to image_size x image_size (bilinear). Null stands for 32, but for the sources
            tfds, folder and array for the middle one of the images' smaller sides, at most 64.
        channels: 1 for grey, 3 for RGB. Null stands for 1, but for the sources tfds, folder and array for 3 where any
            image has colours.
        treatment: of the levels 0 to 255 that an image has: grey (as they are, divided by 255), static (binarised once,
            each pixel to 1 with its grey level's probability), dynamic (the same afresh each time an image is seen) or
            dequantized (noise below one level added, for likelihoods of continuous values).
        validation: held out of the training images where the source has no validation split of its own; below 1 a
            fraction, from 1 on a number of images.
        test: held out for testing where the source has no test split of its own; below 1 a fraction, from 1 on a
            number of images.
        skip_bad: where data.source is folder, leave out images that cannot be used, and list them, instead of
            refusing the folder.
    """

    source: str = "digits"
    name: str | None = None
    path: str | None = None
    manual_dir: str | None = None
    cache_dir: str | None = None
    image_size: int | None = None
    channels: int | None = None
    treatment: str = "grey"
    validation: float = 0.0
    test: float = 0.2
    skip_bad: bool = False

    def __post_init__(self):
        _require(self, image_size="[1, 1024]", channels="[1, 3]", validation="[0, inf)", test="[0, inf)")
        if self.channels == 2:
            raise UserError("data.channels: expected 1 (grey) or 3 (RGB); found 2")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of an image, of a configuration that sets them, as a run's does.

        Raises:
            UserError: it does not.
        """
        if self.image_size is None or self.channels is None:
            raise UserError("data.image_size, data.channels: expected numbers; found null")
        return self.image_size, self.image_size, self.channels


@dataclass(frozen=True)
class ModelConfig:
    """The encoder and the decoder. The defaults are the article's network, quirks included.

    Attributes:
        network: which pair of networks (vae_jax/models): convolutional (the article's), mlp or residual.
        latent: dimensions of the latent space z.
        classes: how many labels there are, if the networks are told each image's (the conditional VAE); 0 for none.
        layers: units of an MLP's hidden layers, first to last; the decoder mirrors them.
        gated: an MLP's layers are gated, each unit multiplied by another's sigmoid, and have no activation.
        blocks: residual blocks after each of a residual network's changes of size.
        channels: feature maps of the encoder's convolutions, or a residual network's stages, first to last; the
            decoder mirrors them.
        kernel: side of every convolution's kernel.
        strides: of the encoder's convolutions, one for all or one each; the decoder mirrors them.
        paddings: of the encoder's convolutions, one each; null derives them from the image size.
        hidden: units of the linear layer between the convolutions and the heads.
        activation: after every layer but the last: leaky_relu (slope 0.01), relu, elu, gelu, silu or tanh.
        batch_norm: BatchNorm after every convolution but the decoder's last, or before all but a residual encoder's
            first.
        batch_norm_momentum: weight of the newest batch in the running statistics (PyTorch's convention).
        unbiased_running_variance: as PyTorch keeps it; false keeps the biased variance, as Flax does.
        hidden_activation: an activation after the hidden linear layer (the article has none).
        head_activation: an activation after the heads for mean and log-variance (the article has it).
        head_dropout: dropout rate after the heads (the article has 0.2; 0 for none).
        decoder_dropout: dropout rate after the decoder's linear layer.
        initialization: pytorch (uniform in ±1/√fan_in, biases too), lecun (Flax's: LeCun normal, biases 0) or glorot
            (uniform in ±√(6/(fan_in + fan_out)), biases 0).
        convolution: auto (native on a TPU, matmul elsewhere), native (XLA's) or matmul (im2col + matrix product).
        precision: of the networks' arithmetic: float32; tensorfloat32 (products rounded to 10 bits on hardware that
            has it, float32 elsewhere); or bfloat16 (activations and products; parameters, BatchNorm's statistics,
            the loss and the optimiser stay in float32).
    """

    network: str = "convolutional"
    latent: int = 20
    classes: int = 0
    layers: tuple[int, ...] = (200, 200)
    gated: bool = False
    blocks: int = 1
    channels: tuple[int, ...] = (8, 16, 32, 64)
    kernel: int = 4
    strides: int | tuple[int, ...] = 2
    paddings: tuple[int, ...] | None = None
    hidden: int = 128
    activation: str = "leaky_relu"
    batch_norm: bool = True
    batch_norm_momentum: float = 0.1
    unbiased_running_variance: bool = True
    hidden_activation: bool = False
    head_activation: bool = True
    head_dropout: float = 0.2
    decoder_dropout: float = 0.2
    initialization: str = "pytorch"
    convolution: str = "auto"
    precision: str = "float32"

    def __post_init__(self):
        _require(
            self,
            latent="[1, 65536]",
            classes="[0, 65536]",
            layers="[1, 65536]",
            blocks="[0, 64]",
            channels="[1, 65536]",
            kernel="[1, 64]",
            strides="[1, 64]",
            paddings="[0, 64]",
            hidden="[1, 65536]",
            batch_norm_momentum="(0, 1]",
            head_dropout="[0, 1)",
            decoder_dropout="[0, 1)",
        )
        if not self.channels:
            raise UserError("model.channels: expected at least one convolution; found none")


@dataclass(frozen=True)
class PosteriorConfig:
    """The approximate posterior q(z|x).

    Attributes:
        name: diagonal_gaussian, full_gaussian (with a full covariance), planar (a planar flow) or iaf (an inverse
            autoregressive flow), see vae_jax/posteriors; or the import path of your own.
        flows: steps of a flow.
        hidden: units of each hidden layer of an inverse autoregressive flow's networks.
        context: numbers that the encoder gives an inverse autoregressive flow beside its first Gaussian.
    """

    name: str = "diagonal_gaussian"
    flows: int = 4
    hidden: int = 64
    context: int = 32

    def __post_init__(self):
        _require(self, flows="[1, 1024]", hidden="[1, 65536]", context="[1, 65536]")


@dataclass(frozen=True)
class PriorConfig:
    """The prior p(z).

    Attributes:
        name: standard_normal, mixture (of Gaussians), vamp (the posterior at learned pseudo-inputs) or flow (a
            normalising flow of coupling layers), see vae_jax/priors; or the import path of your own.
        components: of a mixture, or pseudo-inputs.
        flows: coupling layers of a flow.
        hidden: units of each hidden layer of a flow's networks.
    """

    name: str = "standard_normal"
    components: int = 100
    flows: int = 4
    hidden: int = 64

    def __post_init__(self):
        _require(self, components="[1, 65536]", flows="[1, 1024]", hidden="[1, 65536]")


@dataclass(frozen=True)
class LikelihoodConfig:
    """The likelihood p(x|z).

    Attributes:
        name: bernoulli, continuous_bernoulli, gaussian, discretized_logistic or discretized_logistic_mixture, see
            vae_jax/likelihoods; or the import path of your own.
        variance: of a Gaussian: fixed, shared (one for all pixels, learned) or pixel (one for each, from the decoder).
        scale: a Gaussian's standard deviation where it is fixed, and where it starts otherwise; grey levels are 0 to 1.
        components: of a mixture, for each pixel.
    """

    name: str = "bernoulli"
    variance: str = "fixed"
    scale: float = 0.1
    components: int = 5

    def __post_init__(self):
        _require(self, scale="[0.001, 1000]", components="[1, 1024]")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised.

    Attributes:
        name: vae (−ELBO), capacity_vae (the KL pulled to a growing capacity), iwae, miwae, piwae, ciwae (importance-
            weighted bounds), autoencoder (squared error, no sampling) or denoising_autoencoder (the same from a
            corrupted input), see vae_jax/objectives; or the import path of your own.
        beta: weight of the KL term in nats; 1 is the ELBO, others the β-VAE.
        kl: analytic, sampled (one sample of log q(z|x) − log p(z)) or auto: analytic where there is a closed form.
        gradient: standard; stl (sticking the landing: without the score of q) or dreg (doubly reparameterized).
        schedule: of beta: constant, warmup (linear from 0) or cyclical (the same again and again).
        warmup_epochs: of schedule warmup.
        cycle_epochs: of schedule cyclical, the length of a cycle …
        cycle_ratio: … and the part of it in which beta rises.
        free_bits: nats of KL that cost nothing in each dimension, on the average of a batch.
        capacity: of capacity_vae, the KL in nats that it grows to …
        capacity_epochs: … over so many epochs …
        capacity_weight: … and the weight of the distance from it.
        samples: k of the importance-weighted bounds; in each group of miwae and piwae.
        groups: of miwae and piwae, averaged over.
        elbo_weight: of ciwae, between 0 (IWAE) and 1 (ELBO).
        corruption: of a denoising autoencoder's input: gaussian (added noise) or masking (pixels set to 0).
        corruption_level: the noise's standard deviation (grey levels are 0 to 1), or the fraction masked.
    """

    name: str = "vae"
    beta: float = 1.0
    kl: str = "auto"
    gradient: str = "standard"
    schedule: str = "constant"
    warmup_epochs: float = 10.0
    cycle_epochs: float = 10.0
    cycle_ratio: float = 0.5
    free_bits: float = 0.0
    capacity: float = 25.0
    capacity_epochs: float = 50.0
    capacity_weight: float = 100.0
    samples: int = 5
    groups: int = 4
    elbo_weight: float = 0.5
    corruption: str = "gaussian"
    corruption_level: float = 0.3

    def __post_init__(self):
        _require(
            self,
            beta="[0, inf)",
            warmup_epochs="(0, inf)",
            cycle_epochs="(0, inf)",
            cycle_ratio="(0, 1]",
            free_bits="[0, inf)",
            capacity="[0, inf)",
            capacity_epochs="(0, inf)",
            capacity_weight="[0, inf)",
            samples="[1, 1000000]",
            groups="[1, 1000000]",
            elbo_weight="[0, 1]",
            corruption_level="[0, 1]",
        )


@dataclass(frozen=True)
class TrainConfig:
    """How it is minimised: Adam on shuffled batches.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in a batch; the last, smaller batch of an epoch is used too.
        learning_rate: Adam's, at its highest.
        adam_b1: decay of Adam's first moment.
        adam_b2: decay of Adam's second moment.
        adam_eps: Adam's ε.
        schedule: of the learning rate: constant, cosine or linear (both down to 0 at the end), exponential, or burda
            (stages of 1, 3, 9, 27, … epochs, at rates that fall tenfold from the first to the eighth).
        warmup_steps: steps in which the learning rate first rises linearly from 0.
        decay_rate: with schedule exponential, the factor per epoch.
        gradient_clip: largest global norm of a gradient, or null for no clipping.
        skip_nonfinite: leave out updates whose loss or gradient is infinite or NaN, and count them, instead of
            stopping at the first; a run still stops after an epoch of nothing else.
        reduction: of a batch's losses before the gradient: sum (the article's) or mean. Reported figures are per
            image either way.
        chunk_steps: steps compiled into one call, between which progress shows; 0 measures about a second. The
            results do not depend on it.
        shard_images: images on the device at a time, streamed there while the ones before train, for data sets that
            do not fit; 0 keeps all of them there if they fill at most a quarter of its memory. The results do not
            depend on it.
    """

    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 1e-3
    adam_b1: float = 0.9
    adam_b2: float = 0.999
    adam_eps: float = 1e-8
    schedule: str = "constant"
    warmup_steps: int = 0
    decay_rate: float = 0.95
    gradient_clip: float | None = None
    skip_nonfinite: bool = False
    reduction: str = "sum"
    chunk_steps: int = 0
    shard_images: int = 0

    def __post_init__(self):
        _require(
            self,
            epochs="[1, 1000000]",
            batch_size="[1, 1000000]",
            learning_rate="(0, inf)",
            adam_b1="[0, 1)",
            adam_b2="[0, 1)",
            adam_eps="(0, inf)",
            warmup_steps="[0, 1000000000]",
            decay_rate="(0, 1]",
            gradient_clip="(0, inf)",
            chunk_steps="[0, 1000000000]",
            shard_images="[0, 1000000000]",
        )


@dataclass(frozen=True)
class OutputConfig:
    """What a run keeps in its folder.

    Attributes:
        keep_checkpoints: newest checkpoints kept, besides the best one.
        checkpoint_minutes: an epoch longer than this is checkpointed inside as well.
        figure_every: epochs between pictures of reconstructions; the last epoch always gets one.
        figure_images: images in a picture of reconstructions or samples.
    """

    keep_checkpoints: int = 2
    checkpoint_minutes: float = 10.0
    figure_every: int = 1
    figure_images: int = 64

    def __post_init__(self):
        _require(
            self,
            keep_checkpoints="[1, 1000000]",
            checkpoint_minutes="(0, inf)",
            figure_every="[1, 1000000]",
            figure_images="[1, 1024]",
        )


@dataclass(frozen=True)
class Config:
    """One run, whole.

    Attributes:
        seed: of everything random: initialisation, shuffling, noise and dropout.
        data: the images.
        model: the networks.
        posterior: q(z|x).
        prior: p(z).
        likelihood: p(x|z).
        objective: what is minimised.
        train: how it is minimised.
        output: what is kept.
    """

    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    posterior: PosteriorConfig = field(default_factory=PosteriorConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self):
        _require(self, seed="[0, 4294967295]")


BOUNDS = ("vae", "capacity_vae", "iwae", "miwae", "piwae", "ciwae")
AUTOENCODERS = ("autoencoder", "denoising_autoencoder")
CONVOLUTIONS = ("convolutional", "residual")
# Options that only some choices look at: option, the option that chooses, and the choices.
MEANT_FOR = (
    ("data.name", "data.source", ("tfds",)),
    ("data.path", "data.source", ("folder", "array")),
    ("data.manual_dir", "data.source", ("mnist", "fashion_mnist", "kmnist", "tfds")),
    ("data.skip_bad", "data.source", ("folder",)),
    ("model.layers", "model.network", ("mlp",)),
    ("model.gated", "model.network", ("mlp",)),
    ("model.blocks", "model.network", ("residual",)),
    ("model.channels", "model.network", CONVOLUTIONS),
    ("model.convolution", "model.network", CONVOLUTIONS),
    *(
        (f"model.{option}", "model.network", ("convolutional",))
        for option in (
            "kernel",
            "strides",
            "paddings",
            "hidden",
            "hidden_activation",
            "head_activation",
            "head_dropout",
            "decoder_dropout",
        )
    ),
    *(
        (f"model.{option}", "model.network", CONVOLUTIONS)
        for option in ("batch_norm", "batch_norm_momentum", "unbiased_running_variance")
    ),
    ("model.activation", "model.gated", (False,)),
    ("model.batch_norm_momentum", "model.batch_norm", (True,)),
    ("posterior.name", "objective.name", BOUNDS),
    ("posterior.flows", "posterior.name", ("planar", "iaf")),
    ("posterior.hidden", "posterior.name", ("iaf",)),
    ("posterior.context", "posterior.name", ("iaf",)),
    ("prior.name", "objective.name", BOUNDS),
    ("prior.components", "prior.name", ("mixture", "vamp")),
    ("prior.flows", "prior.name", ("flow",)),
    ("prior.hidden", "prior.name", ("flow",)),
    ("likelihood.name", "objective.name", BOUNDS),
    ("likelihood.variance", "likelihood.name", ("gaussian",)),
    ("likelihood.scale", "likelihood.name", ("gaussian",)),
    ("likelihood.components", "likelihood.name", ("discretized_logistic_mixture",)),
    ("objective.beta", "objective.name", ("vae",)),
    ("objective.kl", "objective.name", ("vae", "capacity_vae")),
    ("objective.gradient", "objective.name", ("vae", "iwae", "miwae")),
    ("objective.schedule", "objective.name", ("vae",)),
    ("objective.warmup_epochs", "objective.schedule", ("warmup",)),
    ("objective.cycle_epochs", "objective.schedule", ("cyclical",)),
    ("objective.cycle_ratio", "objective.schedule", ("cyclical",)),
    ("objective.free_bits", "objective.name", ("vae",)),
    ("objective.capacity", "objective.name", ("capacity_vae",)),
    ("objective.capacity_epochs", "objective.name", ("capacity_vae",)),
    ("objective.capacity_weight", "objective.name", ("capacity_vae",)),
    ("objective.samples", "objective.name", ("iwae", "miwae", "piwae", "ciwae")),
    ("objective.groups", "objective.name", ("miwae", "piwae")),
    ("objective.elbo_weight", "objective.name", ("ciwae",)),
    ("objective.corruption", "objective.name", ("denoising_autoencoder",)),
    ("objective.corruption_level", "objective.name", ("denoising_autoencoder",)),
    ("train.decay_rate", "train.schedule", ("exponential",)),
)
# Whoever registers a part of their own decides what it looks at.
OURS = {
    "data.source": ("digits", "mnist", "fashion_mnist", "kmnist", "tfds", "folder", "array"),
    "model.network": ("convolutional", "mlp", "residual"),
    "posterior.name": ("diagonal_gaussian", "full_gaussian", "planar", "iaf"),
    "prior.name": ("standard_normal", "mixture", "vamp", "flow"),
    "likelihood.name": (
        "bernoulli",
        "continuous_bernoulli",
        "gaussian",
        "discretized_logistic",
        "discretized_logistic_mixture",
    ),
    "objective.name": (*BOUNDS, *AUTOENCODERS),
}


def check_used(config: Config) -> None:
    """Refuses an option that the rest of the configuration would silently ignore.

    Raises:
        UserError: naming it, what it needs and what was found.
    """
    _check_used({section: getattr(config, section) for section in _sections()})


def check_data_used(config: DataConfig) -> None:
    """The same for options of the data alone."""
    _check_used({"data": config})


def without_unused(config: Config) -> Config:
    """The same configuration with options that it ignores at their defaults."""
    sections = {section: getattr(config, section) for section in _sections()}
    for option, _, _, _ in _unused(sections):  # which looks at the sections as they are by then
        section, _, name = option.partition(".")
        plain = getattr(default(type(sections[section])), name)
        sections[section] = replace(sections[section], **{name: plain})
    return replace(config, **sections)


def _check_used(sections: dict[str, Any]) -> None:
    for option, by, choices, found in _unused(sections):
        raise UserError(f"{option}: expected {by} {' or '.join(map(as_text, choices))}; found {as_text(found)}")


def _unused(sections: dict[str, Any]) -> Iterator[tuple[str, str, tuple[Any, ...], Any]]:
    """Options that are set and that nothing looks at: each with what decides that, what it would have to be, and is."""
    for option, by, choices in MEANT_FOR:
        section, _, name = option.partition(".")
        if section not in sections or getattr(sections[section], name) == getattr(
            default(type(sections[section])), name
        ):
            continue
        other, _, decides = by.partition(".")
        found = getattr(sections[other], decides)
        if found not in choices and (by not in OURS or found in OURS[by]):
            yield option, by, choices, found


def as_used(config: Config, *options: str) -> str:
    """Those of these options that the configuration looks at, each with its value, in words."""
    values = options_of(config)
    ignored = {
        option
        for option, by, choices in MEANT_FOR
        if values[by] not in choices and (by not in OURS or values[by] in OURS[by])
    }
    return ", ".join(f"{option} {as_text(values[option])}" for option in options if option not in ignored)


@functools.cache
def default(kind: Any) -> Any:
    """A configuration, or a section of one, as it is by default."""
    return kind()


def options_of(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every option's value by its dotted name."""
    options = {}
    for option in fields(config):
        value = getattr(config, option.name)
        if is_dataclass(value):
            options |= options_of(value, f"{prefix}{option.name}.")
        else:
            options[prefix + option.name] = value
    return options


def changed_options(config: Config) -> dict[str, Any]:
    """The options that are not as they are by default."""
    plain = options_of(default(type(config)))
    return {option: value for option, value in options_of(config).items() if value != plain[option]}


def with_options(config: Config, **changes: Any) -> Config:
    """The configuration with some options changed: `with_options(config, **{"train.epochs": 2})`.

    A value may be text, as of a flag: "2". A section may be changed at once: `train={"epochs": 2}`.

    Raises:
        UserError: for an unknown option, a wrong type or a value out of range.
    """
    sections: dict[str, dict[str, Any]] = {}
    remaining = list(changes.items())
    while remaining:
        option, value = remaining.pop(0)
        section, _, name = option.rpartition(".")
        if option in _sections():
            value = _read_text(option, value) if isinstance(value, str) else value
            if not isinstance(value, dict):
                expected = f"one of its options, as in --{option}.OPTION VALUE"
                raise UserError(f"--{option}: expected {expected}; found {_shown(value)!r}")
            remaining = [(f"{option}.{_known(option, str(own))}", each) for own, each in value.items()] + remaining
        elif option in option_types():
            sections.setdefault(section, {})[name] = _value(option, option_types()[option], value)
        else:
            near = difflib.get_close_matches(option, option_types(), n=1)
            hint = f" (did you mean --{near[0]}?)" if near else ""
            raise UserError(f"--{option:.60}: expected an option of a configuration; found none of that name{hint}")
    own = sections.pop("", {})
    return replace(config, **own, **{name: replace(getattr(config, name), **each) for name, each in sections.items()})


def _known(section: str, name: str, where: str = "") -> str:
    """The name of an option of this section.

    Raises:
        UserError: if there is none; names the nearest one.
    """
    return lookup({option.name: option.name for option in fields(_sections()[section])}, name, f"{where}{section}")


@functools.cache
def _sections() -> dict[str, Any]:
    return {section.name: section.type for section in fields(Config) if is_dataclass(section.type)}


@functools.cache
def option_types() -> dict[str, tuple[Any, ...]]:
    """What every option may be, by its dotted name."""
    return {option: kinds for section in (Config, *_sections().values()) for _, option, kinds in _options(section)}


def values_in(option: str, text: str) -> list[str]:
    """The values in "1,2,3", or "[8,16],[16,32]" where each is a list, as text that `option` takes.

    Raises:
        UserError: if it is no such list.
    """
    import yaml

    kinds = option_types().get(option, ())
    try:
        values = _load_yaml(f"[{text}]", str in kinds)  # where 1e3 may be a name, it is no number
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{option}: expected values with commas between them; found {text:.60}") from error
    if not values or "" in values or (None in values and NoneType not in kinds):
        raise UserError(f"{option}: expected values with commas between them; found {text!r:.60}")
    return [as_text(value) for value in values]


def expand(path: str | Path) -> Path:
    """A path with ~ for the home folder, which a shell expands at a word's beginning only.

    Raises:
        UserError: if there is no such home folder.
    """
    expanded = Path(os.path.expanduser(path))
    user = expanded.parts[0] if expanded.parts else ""
    # The name of a file or of a folder that is there may begin with ~ too.
    if user == "~" or (user.startswith("~") and len(expanded.parts) > 1 and not os.path.exists(user)):
        raise UserError(f"{path}: expected a path; {user} is no home folder here")
    return expanded


def shipped() -> dict[str, Path]:
    """The configurations that come with the package, by name."""
    package = Path(__file__).parent
    # In the wheel they lie inside the package, in a checkout beside it.
    folder = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str | Path) -> Path:
    """The YAML file called `name`: a path, or the name of a shipped configuration.

    Raises:
        UserError: if there is neither.
    """
    path = expand(name)
    try:
        if path.is_file():
            return path
        kind = "a folder" if path.is_dir() else "a special file" if path.exists() else "no such file"
    except (OSError, ValueError) as error:  # a name that no file can have
        kind = getattr(error, "strerror", None) or error
    if str(name) in shipped():
        return shipped()[str(name)]
    raise UserError(
        f"--config {cut(str(name), 200)}: expected a YAML file or one of {', '.join(shipped())}; found {kind}"
    )


def add_options(parser: "ArgumentParser") -> None:
    """Adds every option of a configuration to a jsonargparse parser, with its help from the docstrings above."""
    parser.add_argument(
        "--config",
        action="config",
        metavar="FILE",
        help="a YAML file, or the name of a shipped one; files of code that it names are run",
    )
    parser.add_class_arguments(Config)


@functools.cache
def yaml_mode() -> str:
    """The parser_mode with which jsonargparse reads YAML as `_load_yaml` does, in files and in flags."""
    import yaml
    from jsonargparse import set_loader

    set_loader(YAML, _load_yaml, exceptions=(yaml.YAMLError,))
    return YAML


@functools.cache
def _yaml_loader(literal: bool = False) -> Any:
    """A loader for which a number is what it looks like, as in YAML 1.2; if `literal`, everything is text.

    YAML 1.1 reads 017 as 15, 1:30 as 90, 1e-3 as text and 2024-01-01 as a date.
    """
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):
        pass

    if literal:
        Loader.yaml_implicit_resolvers = {}
        return Loader
    other = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp")}
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in other]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    numbers = {
        "int": r"[-+]?(0|[1-9][0-9_]*)",
        "float": r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    }
    for kind, pattern in numbers.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{pattern})$"), list("-+.0123456789"))
    return Loader


@functools.cache
def _yaml_dumper() -> Any:
    """The loader's inverse: quotes every text that it, or YAML 1.1, would read as something else."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    for first, resolvers in _yaml_loader().yaml_implicit_resolvers.items():
        for tag, pattern in resolvers:
            Dumper.add_implicit_resolver(tag, pattern, [first])
    return Dumper


def _load_yaml(text: str, literal: bool = False) -> Any:
    """What a YAML text says, if it builds no more than it shows and says nothing twice.

    Args:
        text: to read.
        literal: every value is text, as it stands.

    Raises:
        YAMLError: it is none, or it does.
    """
    import yaml

    depth, loader = 0, _yaml_loader(literal)
    # Looked at before anything is built from it: aliases and depth can make a short text a large structure.
    for number, event in enumerate(yaml.parse(text, Loader=loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        more = isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None)
        if more or depth > 3 or number > PARTS_LIMIT:
            raise yaml.YAMLError(f"expected plain options by section; found more than that in {_line(event)}")
    read = loader(text)
    try:
        root = read.get_single_node()
        nodes = [root]
        while nodes:
            node = nodes.pop()
            if isinstance(node, yaml.SequenceNode):
                nodes += node.value
            elif isinstance(node, yaml.MappingNode):
                names = set()
                for key, value in node.value:
                    if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                        where = _line(key)
                        raise yaml.YAMLError(f"expected plain options by section; found more than that in {where}")
                    if key.value in names:
                        raise yaml.YAMLError(
                            f"expected each option once; found {key.value!r:.60} again in {_line(key)}"
                        )
                    names.add(key.value)
                    nodes.append(value)
        return None if root is None else read.construct_document(root)
    finally:
        read.dispose()


def _line(part: Any) -> str:
    return f"line {part.start_mark.line + 1}"


def read_file(path: Path) -> Config:
    """The configuration in a YAML file, which may be of options by section and of nothing else.

    Raises:
        UserError: naming the file, what was expected and what was found.
    """
    import yaml

    try:
        read = _load_yaml(checked.read_bytes(path, SIZE_LIMIT).decode())
    except checked.UnfitError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: expected a YAML file; {brief(error)}") from error
    if not isinstance(read, dict):
        kind = "nothing" if read is None else type(read).__name__
        raise UserError(f"{path}: expected options by section, as in `train: {{epochs: 5}}`; found {kind}")
    known = {section.name: section.type for section in fields(Config)}
    for name, options in read.items():
        if not is_dataclass(lookup(known, str(name), str(path))):
            continue
        if not isinstance(options, dict):
            raise UserError(f"{path}: {name}: expected a section of options; found {_shown(options)}")
        for option in options:
            _known(name, str(option), f"{path}: ")
    try:
        return with_options(Config(), **read)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read(parser: "ArgumentParser", arguments: Sequence[str], base: Config | None = None) -> Any:
    """Parses a command's arguments into a namespace; where it has a configuration's options, with their sections.

    Args:
        parser: of the command; `add_options` adds those of a configuration.
        arguments: of the command.
        base: the configuration that flags change; by default that of the file that --config names, or the default one.

    Raises:
        UserError: one line for whatever is wrong.
    """
    configured = "--config" in parser._option_string_actions
    file, changes, rest = None, {}, []
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        option = flag.removeprefix("--")
        _check_length(argument, flag, SIZE_LIMIT)
        own = configured and flag.startswith("--") and (option in option_types() or option in _sections())
        if not own and not (configured and flag == "--config"):
            # What is neither an option's value nor a list of them is a name or a path.
            _check_length(argument, flag, SIZE_LIMIT if "--set" in (flag, *rest[-1:]) else TEXT_LIMIT)
            rest.append(argument)
            continue
        if not equals and ((value := next(remaining, "--")) == "-h" or value.startswith("--")):
            raise UserError(f"{flag}: expected a value; found none")
        if flag == "--config":
            file = find(value)
        else:
            may_be_null = NoneType in option_types().get(option, ())
            changes.pop(option, None)  # of a section and its option the later one wins
            changes[option] = None if may_be_null and value == "null" else value
    config = base or Config()
    if file is not None:
        config = read_file(file)
    config = with_options(config, **changes)
    try:
        found, defaults = parser.parse_args(rest), parser.get_defaults()
    except Exception as error:  # jsonargparse raises many kinds for strange values
        message = " ".join(str(getattr(error, "message", error)).split())
        if "argument" not in message and "key" not in message:  # a loader's own, which names no option
            message = (
                f"expected options that can be read, found {quoted(' '.join(arguments), 200)} ({brief(message, 200)})"
            )
        raise UserError(brief(message + _nearest(parser, message))) from error
    for option, value in found.items():
        if value is None and defaults.get(option) is not None:  # jsonargparse takes null for any option
            raise UserError(f"{option}: expected a value; found null")
    if configured:
        found.config = file
        for section in fields(Config):
            found[section.name] = getattr(config, section.name)
    return found


def _check_length(argument: str, flag: str, most: int) -> None:
    if len(argument) > most:
        raise UserError(f"{cut(flag)}: expected at most {most:,} characters; found {len(argument):,}")


def _nearest(parser: "ArgumentParser", message: str) -> str:
    """A hint at the option that was probably meant, if the message complains of an unknown one."""
    unknown = re.search(r"unrecognized arguments: (--[\w.-]+)", message)
    if not unknown:
        return ""
    options = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(unknown[1], options, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def load_config(name: str | Path | None = None, **overrides: Any) -> Config:
    """A configuration from a YAML file or a shipped name, with overrides by dotted option.

    `load_config("article", **{"train.epochs": 2})`; without a name, the defaults.

    Raises:
        UserError: for a missing file, an unknown option, a wrong type, a value out of range, or an option that the rest
            would ignore.
    """
    config = with_options(Config() if name is None else read_file(find(name)), **overrides)
    check_used(config)
    return config


def from_namespace(found: Any) -> Config:
    """The configuration in a parsed namespace."""
    return Config(**{section.name: getattr(found, section.name) for section in fields(Config)})


def to_yaml(config: Config) -> str:
    """The configuration in full, as `load_config` reads it."""
    import yaml

    return yaml.dump(_plain(asdict(config)), Dumper=_yaml_dumper(), sort_keys=False, width=math.inf)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def as_text(value: Any) -> str:
    """A value as a flag takes it."""
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return str(value) if isinstance(value, str | Path) else json.dumps(_plain(value), default=str)
