"""What a run is made of: frozen dataclasses, filled from a YAML file in `configs/` and from overrides.

Nothing here imports jax, so the command line can teach and refuse without waiting for it.
"""

import difflib
import functools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_jax.errors import UserError
from vae_jax.registry import lookup

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SIZE_LIMIT = 1 << 17  # bytes of a YAML file or of a flag's value
PARTS_LIMIT = 10_000  # names, values and brackets in it; more take seconds
TEXT_LIMIT = 4096  # characters of a name or a path
COUNT_LIMIT = 64  # numbers in a list
MESSAGE_LIMIT = 500  # characters of what another package says about a configuration
NO_DECIMAL = re.compile(r"[-+]?(0[0-9_box][0-9a-fA-F_]*|[0-9][0-9_]*(:[0-9]+)+\.?[0-9_]*)")  # 017, 0x1F, 1:30
YAML = "plain_yaml"  # jsonargparse's name for our way to read YAML


def _require(section: Any, **expectations: str) -> None:
    """Checks numbers against a range, written as in mathematics: "[0, 1)".

    Raises:
        UserError: naming the option, what was expected and what was found.
    """
    for name, interval in expectations.items():
        found = getattr(section, name)
        low, high = (float(end) for end in interval[1:-1].split(","))
        if isinstance(found, tuple) and len(found) > COUNT_LIMIT:
            raise UserError(f"{_option(section, name)}: expected at most {COUNT_LIMIT} numbers; found {len(found):,}")
        for value in found if isinstance(found, tuple) else (found,):
            if value is None:
                continue
            above = value > low if interval[0] == "(" else value >= low
            below = value < high if interval[-1] == ")" else value <= high
            if not (above and below):  # neither holds for NaN
                raise UserError(f"{_option(section, name)}: expected a number in {interval}; found {value!s:.40}")


def _option(section: Any, name: str) -> str:
    """An option's dotted name."""
    return f"{type(section).__name__.removesuffix('Config').lower()}.{name}".removeprefix(".")


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
        for name in ("name", "path", "manual_dir", "cache_dir"):
            value = getattr(self, name) or ""
            if len(value) > TEXT_LIMIT or "\0" in value:
                found = "a null character" if "\0" in value else f"{len(value):,}"
                raise UserError(f"data.{name}: expected at most {TEXT_LIMIT:,} characters; found {found}")
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
        convolution: auto (matmul on a CPU, native elsewhere), native (XLA's) or matmul (im2col + matrix product).
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
            epochs="[1, 1000000]",  # steps are counted in 32 bits
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
    _check_used({section.name: getattr(config, section.name) for section in fields(config)})


def check_data_used(config: DataConfig) -> None:
    """The same for options of the data alone."""
    _check_used({"data": config})


def _check_used(sections: dict[str, Any]) -> None:
    def value(option: str) -> Any:
        section, name = option.split(".")
        return getattr(sections[section], name)

    for option, by, choices in MEANT_FOR:
        section, name = option.split(".")
        if section not in sections or value(option) == getattr(type(sections[section])(), name):
            continue
        found = value(by)
        if found not in choices and (by not in OURS or found in OURS[by]):
            raise UserError(f"{option}: expected {by} {' or '.join(map(_to_yaml, choices))}; found {_to_yaml(found)}")


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
    plain = options_of(type(config)())
    return {option: value for option, value in options_of(config).items() if value != plain[option]}


def with_options(config: Config, **changes: str) -> Config:
    """The configuration with some options changed, each as a flag would: `with_options(config, **{"seed": "1"})`.

    Raises:
        UserError: for an unknown option, a wrong type or a value out of range.
    """
    return load_config(**{**changed_options(config), **changes})


def listed(option: str, text: str) -> list[str]:
    """The values in "1,2,3", or "[8,16],[16,32]" where each is a list, as text that a flag takes.

    Raises:
        UserError: if it is no such list.
    """
    import yaml

    try:
        values = _load_yaml(f"[{text}]")
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{option}: expected values with commas between them; found {text:.60}") from error
    if not values or None in values:
        raise UserError(f"{option}: expected values with commas between them; found {text!r:.60}")
    return [_to_yaml(value) for value in values]


def expand(path: str | Path) -> Path:
    """A path with ~ for the home folder, which a shell expands at a word's beginning only."""
    return Path(os.path.expanduser(path))


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
    if path.is_file():
        return path
    if str(name) in shipped():
        return shipped()[str(name)]
    kind = "a folder" if path.is_dir() else "a special file" if path.exists() else "no such file"
    raise UserError(f"--config {name!s:.200}: expected a YAML file or one of {', '.join(shipped())}; found {kind}")


def add_options(parser: "ArgumentParser") -> None:
    """Adds every option of a configuration to a jsonargparse parser, with its help from the docstrings above."""
    parser.add_argument("--config", action="config", metavar="FILE", help="a YAML file, or the name of a shipped one")
    parser.add_class_arguments(Config)


def _parser() -> "ArgumentParser":
    """A parser of a configuration's options and nothing else."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, parser_mode=yaml_mode())
    add_options(parser)
    return parser


@functools.cache
def yaml_mode() -> str:
    """The parser_mode with which jsonargparse reads YAML as `_load_yaml` does, in files and in flags."""
    import yaml
    from jsonargparse import set_loader

    set_loader(YAML, _load_yaml, exceptions=(yaml.YAMLError,))
    return YAML


@functools.cache
def _yaml_loader() -> Any:
    """A loader for which a number is what it looks like, as in YAML 1.2.

    YAML 1.1 reads 017 as 15, 1:30 as 90, 1e-3 as text and 2024-01-01 as a date.
    """
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):
        pass

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


def _load_yaml(text: str) -> Any:
    """What a YAML text says, if it builds no more than it shows and says nothing twice.

    Raises:
        YAMLError: it is none, or it does.
    """
    import yaml

    depth = 0
    # Looked at before anything is built from it: aliases and depth can make a short text a large structure.
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        more = isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None)
        if more or depth > 3 or number > PARTS_LIMIT:
            raise yaml.YAMLError(f"expected plain options by section; found more than that in {_line(event)}")
    nodes = [yaml.compose(text, Loader=_yaml_loader())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            names = set()
            for key, value in node.value:
                if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                    raise yaml.YAMLError(f"expected plain options by section; found more than that in {_line(key)}")
                if key.value in names:
                    raise yaml.YAMLError(f"expected each option once; found {key.value!r:.60} again in {_line(key)}")
                names.add(key.value)
                nodes.append(value)
    return yaml.load(text, Loader=_yaml_loader())


def _line(part: Any) -> str:
    return f"line {part.start_mark.line + 1}"


def _check_file(path: Path) -> None:
    """Refuses a file that is not options by section, in words that jsonargparse has not.

    Only options of a configuration may stand in it: a file from elsewhere must not say `overwrite: true`.

    Raises:
        UserError: naming the file, what was expected and what was found.
    """
    import yaml

    try:
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT + 1)
        if len(content) > SIZE_LIMIT:
            raise UserError(f"{path}: expected a YAML file of at most {SIZE_LIMIT:,} bytes; found a longer one")
        found = _load_yaml(content.decode())
    except UserError:
        raise
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: expected a YAML file; {_brief(error)}") from error
    if not isinstance(found, dict):
        kind = "nothing" if found is None else type(found).__name__
        raise UserError(f"{path}: expected options by section, as in `train: {{epochs: 5}}`; found {kind}")
    sections = {section.name: section.type for section in fields(Config)}
    for name, options in found.items():
        section = lookup(sections, str(name), str(path))
        if not is_dataclass(section):
            _check_decimal(name, options, f"{path}: ")
            continue
        if not isinstance(options, dict):
            raise UserError(f"{path}: {name}: expected a section of options; found {options!r:.60}")
        for option, value in options.items():
            lookup({field.name: field for field in fields(section)}, str(option), f"{path}: {name}")
            _check_decimal(f"{name}.{option}", value, f"{path}: ")


@functools.cache
def _types() -> dict[str, str]:
    """Every option's type, as it is written above."""
    sections = {field.name: field.type for field in fields(Config)}
    types = {name: section for name, section in sections.items() if not is_dataclass(section)}
    for name, section in sections.items():
        if is_dataclass(section):
            types |= {f"{name}.{option.name}": option.type for option in fields(section)}
    return {option: re.sub(r"<class '(\w+)'>", r"\1", str(kind)) for option, kind in types.items()}


def _check_decimal(option: str, value: Any, where: str = "") -> None:
    """Refuses text that jsonargparse would read as a number in YAML 1.1's ways, where an option is no text.

    Nor does jsonargparse tell which option has a number that is too large.
    """
    values = value if isinstance(value, list) else [value]
    if "float" in _types().get(option, "") and any(isinstance(each, int) and abs(each) > 1e308 for each in values):
        raise UserError(f"{where}{option}: expected a number below 1e308; found one too large")
    strange = [each for each in values if isinstance(each, str) and NO_DECIMAL.fullmatch(each)]
    if strange and "str" not in _types().get(option, "str"):
        raise UserError(f"{where}{option}: expected a decimal number; found {strange[0]:.60}")


def _check_flags(arguments: Sequence[str]) -> None:
    """Refuses values that would be read in ways nobody means, or for long.

    jsonargparse takes a whole section as a flag, and opens what is not options in braces as a file.
    """
    import yaml

    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        flag, equals, value = argument.partition("=")
        option, value = flag.removeprefix("--"), value if equals else following
        if len(argument) > SIZE_LIMIT:
            raise UserError(f"{flag:.60}: expected at most {SIZE_LIMIT:,} characters; found {len(argument):,}")
        if not flag.startswith("--"):
            continue
        if option in _types():
            if "str" in _types()[option]:
                continue  # taken as it is
            try:
                found = _load_yaml(value)
            except (yaml.YAMLError, ValueError) as error:
                raise UserError(f"{_expected(option)}; found {value:.60}") from error
            _check_decimal(option, found)
        elif any(name.startswith(f"{option}.") for name in _types()) and not value.lstrip().startswith("{"):
            raise UserError(f"{flag}: expected one of its options, as in {flag}.OPTION VALUE; found {value!r:.60}")


def read(parser: "ArgumentParser", arguments: Sequence[str]) -> Any:
    """Parses options into a namespace whose fields include those of `Config`; flags win over the file.

    Raises:
        UserError: one line for whatever is wrong.
    """
    file, rest, where = None, [], ""
    remaining = iter(arguments)
    try:
        for argument in remaining:
            if argument == "--config":
                file = find(next(remaining, ""))
            elif argument.startswith("--config="):
                file = find(argument.removeprefix("--config="))
            else:
                rest.append(argument)
        _check_flags(rest)
        if file is None:
            return _instantiate(parser, rest)
        _check_file(file)
        where = f"{file}: "
        _parser().parse_args([f"--config={file}"])  # alone first, so that it is not blamed for a flag's fault
        where = ""
        # jsonargparse lets the later one win, so the file goes first.
        return _instantiate(parser, [f"--config={file}", *rest])
    except UserError:
        raise
    except Exception as error:  # jsonargparse raises many kinds for strange values
        message = " ".join(str(getattr(error, "message", error)).split())
        if not where and "argument" not in message and "key" not in message:  # a loader's own, which names no option
            message = f"expected options that can be read, found {' '.join(arguments)!r:.200} ({message:.200})"
        raise UserError(where + (_type_fault(message) or _brief(message) + _nearest(parser, message))) from error


def _brief(error: object) -> str:
    """What another package says, on one line of bounded length."""
    text = " ".join(str(error).split())
    return text if len(text) <= MESSAGE_LIMIT else f"{text[:MESSAGE_LIMIT]} …"


def _type_fault(message: str) -> str:
    """jsonargparse's complaint about an option's type, in few words; empty if it is another complaint."""
    fault = re.match(r'Parser key "([a-z]+(?:\.[a-z_0-9]+)?)": .*?Expected an? .*(?:Got|Given) value: (.*)', message)
    if not fault or fault[1] not in _types():
        return ""
    return f"{_expected(fault[1])}; found {fault[2]:.60}"


def _expected(option: str) -> str:
    """What an option takes, as the beginning of a complaint."""
    words = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "None": "null"}
    words |= {"tuple[int, ...]": "a list of whole numbers"}
    return f"{option}: expected {' or '.join(words[kind] for kind in _types()[option].split(' | '))}"


def _nearest(parser: "ArgumentParser", message: str) -> str:
    """A hint at the option that was probably meant, if the message complains of an unknown one."""
    unknown = re.search(r"unrecognized arguments: (--[\w.-]+)", message)
    if not unknown:
        return ""
    options = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(unknown[1], options, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _instantiate(parser: "ArgumentParser", arguments: Sequence[str]) -> Any:
    found, defaults = parser.parse_args(arguments), parser.get_defaults()
    for option, value in found.items():
        if value is None and defaults.get(option) is not None:  # jsonargparse takes null for any option
            raise UserError(f"{option}: expected a value; found null")
    return parser.instantiate(found)


def load_config(name: str | Path | None = None, **overrides: Any) -> Config:
    """A configuration from a YAML file or a shipped name, with overrides by dotted option.

    `load_config("article", **{"train.epochs": 2})`; without a name, the defaults.

    Raises:
        UserError: for a missing file, an unknown option, a wrong type or a value out of range.
    """
    parser = _parser()
    arguments = [f"--{option}={_to_yaml(value)}" for option, value in overrides.items()]
    found = read(parser, [*(["--config", str(name)] if name is not None else []), *arguments])
    return from_namespace(found)


def from_namespace(found: Any) -> Config:
    """The configuration in a parsed namespace."""
    return Config(**{section.name: getattr(found, section.name) for section in fields(Config)})


def to_yaml(config: Config) -> str:
    """The configuration in full, as `load_config` reads it."""
    import yaml

    plain = _plain(asdict(config))
    return yaml.safe_dump(plain, sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _to_yaml(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(_plain(value), default=str)
