"""The sections of a configuration, each a frozen dataclass."""

from dataclasses import dataclass, field
from typing import Annotated

from vae_jax.config.section import Chosen, Section
from vae_jax.errors import UserError
from vae_jax.options import FIRST, TRACED, one_of, only
from vae_jax.spec import KINDS, MOST_VALUES, NOT_IMAGE, Spec, spec_of

SOURCES = ("digits", "mnist", "fashion_mnist", "kmnist", "tfds", "folder", "array")
IMAGES = only(kind=(None, "image"))


@dataclass(frozen=True)
class DataConfig(Section):
    """Where the data come from and how they are prepared. An option that speaks of images means examples of any kind.

    Attributes:
        source: digits (bundled, no download), mnist, fashion_mnist, kmnist, tfds (any other image data set of
            tensorflow-datasets, see data.name), folder (image files) or array (an .npy or .npz file).
        kind: of data.source array: image; vector, (n, features), or sequence, (n, length, channels), whose numbers are
            used as they are; or categories, whole numbers (n, length). Null means vector if the array holds floats (n,
            features), and image if it has more axes.
        shape: of an example of another kind than image, as an array holds it; null takes it from the array.
        values: of a category, which is a number from 0 to values - 1; null takes as many as there are.
        name: the data set's name if data.source is tfds, for example cifar10 or emnist/letters.
        path: the folder, or the .npy or .npz file, if data.source is folder or array.
        manual_dir: a folder with files downloaded by hand; for the MNIST family manual_dir/<data set>/ is tried first,
            then manual_dir itself. Checksums are verified.
        cache_dir: folder of downloads and resized images; by default vae_jax in the user's cache folder.
        image_size: images are resized to image_size x image_size (bilinear). Null means 32, but for the sources tfds,
            folder and array the median of the images' smaller sides, at most 64.
        channels: 1 for grey, 3 for RGB. Null means 1, but for the sources tfds, folder and array 3 if any image has
            colours.
        treatment: of the images' levels 0 to 255: grey (divided by 255), static (binarised once, a pixel to 1 with its
            grey level's probability), dynamic (binarised afresh whenever an image is used) or dequantized (noise below
            one level added, for likelihoods of continuous values).
        validation: held out of the training images if the source has no validation split; below 1 a fraction, from 1 on
            a number of images.
        test: held out for testing if the source has no test split; below 1 a fraction, from 1 on a number of images.
        skip_bad: if data.source is folder, leave out images that cannot be used, and list them, instead of refusing the
            folder.
    """

    SECTION = "data"

    source: Annotated[str, one_of(*SOURCES, own=True), FIRST] = "digits"
    kind: Annotated[str | None, one_of(*KINDS)] = None
    shape: Annotated[tuple[int, ...] | None, "[1, 1073741824]", only(kind=NOT_IMAGE)] = None
    values: Annotated[int | None, f"[1, {MOST_VALUES}]", only(kind="categories")] = None
    name: Annotated[str | None, only(source="tfds")] = None
    path: Annotated[str | None, only(source=("folder", "array")), FIRST] = None
    manual_dir: Annotated[str | None, only(source=("mnist", "fashion_mnist", "kmnist", "tfds"))] = None
    cache_dir: Annotated[str | None, IMAGES] = None
    image_size: Annotated[int | None, "[1, 1024]", IMAGES, FIRST] = None
    channels: Annotated[int | None, "[1, 3]", IMAGES] = None
    treatment: Annotated[str, one_of("grey", "static", "dynamic", "dequantized"), IMAGES] = "grey"
    validation: Annotated[float, "[0, inf)"] = 0.0
    test: Annotated[float, "[0, inf)"] = 0.2
    skip_bad: Annotated[bool, only(source="folder")] = False

    def __post_init__(self):
        super().__post_init__()
        if self.channels == 2:
            raise UserError("data.channels: expected 1 (grey) or 3 (RGB); found 2")

    @property
    def is_settled(self) -> bool:
        """Whether it determines what an example is, as a run's configuration does."""
        if self.kind in NOT_IMAGE:
            return self.shape is not None and (self.values is not None or self.kind != "categories")
        return self.image_size is not None and self.channels is not None

    @property
    def noun(self) -> str:
        """What reports call an example."""
        return KINDS[self.kind or "image"].noun

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of an image, or the shape of another example.

        Raises:
            UserError: if the configuration is not settled.
        """
        if not self.is_settled:
            options = "data.shape, data.values" if self.kind in NOT_IMAGE else "data.image_size, data.channels"
            raise UserError(f"{options}: expected numbers; found null")
        if self.kind in NOT_IMAGE:
            return (*(self.shape or ()), *(() if self.values is None else (self.values,)))
        return self.image_size or 0, self.image_size or 0, self.channels or 0

    @property
    def spec(self) -> Spec:
        """The kind and shape of an example.

        Raises:
            UserError: if the configuration is not settled.
        """
        return spec_of(self.kind, self.image_shape)


@dataclass(frozen=True, init=False)
class ModelConfig(Chosen):
    """The encoder and the decoder. The defaults are the article's network, quirks included.

    Attributes:
        network: which pair of networks (vae_jax/networks): convolutional (the article's), mlp or residual; or the
            import path of your own.
        latent: dimensions of the latent space z.
        classes: number of labels, if the networks get the images' labels (the conditional VAE); 0 for none.
        initialization: pytorch (uniform in ±1/√fan_in, biases too), lecun (Flax's: LeCun normal, biases 0) or glorot
            (uniform in ±√(6/(fan_in + fan_out)), biases 0).
        precision: of the networks' arithmetic: float32; tensorfloat32 (products rounded to 10 bits on hardware that
            has it, float32 elsewhere); or bfloat16 (activations and products; parameters, BatchNorm's statistics,
            the loss and the optimiser stay in float32).
    """

    SECTION = "model"

    network: Annotated[str, FIRST] = "convolutional"
    latent: Annotated[int, "[1, 65536]", FIRST] = 20
    classes: Annotated[int, "[0, 65536]"] = 0
    initialization: Annotated[str, one_of("pytorch", "lecun", "glorot")] = "pytorch"
    precision: Annotated[str, one_of("float32", "tensorfloat32", "bfloat16")] = "float32"


@dataclass(frozen=True, init=False)
class PosteriorConfig(Chosen):
    """The approximate posterior q(z|x).

    Attributes:
        name: diagonal_gaussian, full_gaussian (with a full covariance), planar (a planar flow), iaf (an inverse
            autoregressive flow); over codes codebook (vector quantisation), fsq (finite scalar quantisation), lfq
            (lookup-free quantisation), categorical (relaxed in training) or bernoulli (bits), see vae_jax/posteriors;
            or the import path of your own.
    """

    SECTION = "posterior"

    name: Annotated[str, FIRST] = "diagonal_gaussian"


@dataclass(frozen=True, init=False)
class PriorConfig(Chosen):
    """The prior p(z).

    Attributes:
        name: standard_normal, mixture (of Gaussians), vamp (the posterior at learned pseudo-inputs), flow (a
            normalising flow of coupling layers), or over codes uniform, pixelcnn (of maps) or transformer, see
            vae_jax/priors; or the import path of your own.
    """

    SECTION = "prior"

    name: Annotated[str, FIRST] = "standard_normal"


@dataclass(frozen=True, init=False)
class LikelihoodConfig(Chosen):
    """The likelihood p(x|z).

    Attributes:
        name: bernoulli, continuous_bernoulli, gaussian, discretized_logistic, discretized_logistic_mixture or
            categorical, see vae_jax/likelihoods; or the import path of your own.
    """

    SECTION = "likelihood"

    name: Annotated[str, FIRST] = "bernoulli"


@dataclass(frozen=True, init=False)
class ObjectiveConfig(Chosen):
    """What is minimised.

    Attributes:
        name: vae (−ELBO), capacity_vae (the KL pulled to a growing capacity), iwae, miwae, piwae, ciwae (importance-
            weighted bounds), score_vae, relax_vae (−ELBO of bits), vimco (an importance-weighted bound of bits), prior
            (p(z) alone, of a model that is trained already), autoencoder (squared error, no sampling) or
            denoising_autoencoder (the same from a corrupted input), see vae_jax/objectives; or the import path of your
            own.
    """

    SECTION = "objective"

    name: Annotated[str, FIRST] = "vae"


@dataclass(frozen=True, init=False)
class OptimizerConfig(Chosen):
    """The rule that turns gradients into steps.

    Attributes:
        name: adam, adamw, adamax, sgd, rmsprop, lion, muon or schedule_free, see docs/optimisers.md; or the import
            path of your own.
    """

    SECTION = "optimizer"

    name: Annotated[str, FIRST] = "adam"


@dataclass(frozen=True)
class TrainConfig(Section):
    """How the objective is minimised: on shuffled batches.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in a batch; the last, smaller batch of an epoch is used too.
        learning_rate: the optimiser's, at its highest.
        schedule: of the learning rate: constant, cosine or linear (both fall to 0 at the end), exponential, or burda
            (stages of 1, 3, 9, 27, … epochs, at rates that fall tenfold from the first to the eighth).
        warmup_steps: steps over which the learning rate first rises linearly from 0.
        decay_rate: with schedule exponential, the factor per epoch.
        gradient_clip: largest global norm of a gradient, or null for no clipping.
        skip_nonfinite: leave out updates whose loss or gradient is infinite or NaN, and count them, instead of stopping
            at the first; a run still stops after an epoch without any other update.
        reduction: of a batch's losses before the gradient: sum (the article's) or mean. Reported figures are per
            image either way.
        accumulate: batches per update, which follows the sum or, with reduction mean, the mean of their gradients. The
            schedule counts batches; an epoch's last, smaller batch counts as one, and batches left over at its end
            count towards the next epoch's first update.
        ema_decay: of an exponential moving average of the weights, which is evaluated, sampled from and saved in place
            of the trained weights; at update t at most (1 + t)/(10 + t). Null for none.
        patience: epochs without a lower validation loss after which training stops; null for none.
        min_delta: with train.patience, by how much the loss must be lower to count.
        start: a run folder to start from, or hub:OWNER/NAME, with the weights that its latest checkpoint is evaluated
            with and a fresh optimiser; null to start fresh.
        chunk_steps: steps in one compiled call, after which progress is shown; 0 chooses about a second's. The results
            do not depend on it.
        shard_images: images on the device at a time, loaded while the ones before are in use, for data sets that do not
            fit; 0 keeps all of them there if they fill at most a quarter of its memory. The results do not depend on
            it.
    """

    SECTION = "train"

    epochs: Annotated[int, "[1, 1000000]", FIRST] = 5
    batch_size: Annotated[int, "[1, 1000000]", FIRST] = 64
    learning_rate: Annotated[float, "(0, inf)", TRACED, FIRST] = 1e-3
    schedule: Annotated[str, one_of("constant", "cosine", "linear", "exponential", "burda")] = "constant"
    warmup_steps: Annotated[int, "[0, 1000000000]"] = 0
    decay_rate: Annotated[float, "(0, 1]", only(schedule="exponential")] = 0.95
    gradient_clip: Annotated[float | None, "(0, inf)"] = None
    skip_nonfinite: bool = False
    reduction: Annotated[str, one_of("sum", "mean")] = "sum"
    accumulate: Annotated[int, "[1, 1000000]"] = 1
    ema_decay: Annotated[float | None, "[0, 1)"] = None
    patience: Annotated[int | None, "[1, 1000000]"] = None
    min_delta: Annotated[float, "[0, inf)"] = 0.0
    start: str | None = None
    chunk_steps: Annotated[int, "[0, 1000000000]"] = 0
    shard_images: Annotated[int, "[0, 1000000000]"] = 0


@dataclass(frozen=True)
class OutputConfig(Section):
    """What a run keeps in its folder.

    Attributes:
        keep_checkpoints: newest checkpoints kept, besides the best one.
        checkpoint_minutes: an epoch longer than this is also checkpointed inside.
        figure_every: epochs between pictures of reconstructions; the last epoch always gets one.
        figure_images: images in a picture of reconstructions or samples.
    """

    SECTION = "output"

    keep_checkpoints: Annotated[int, "[1, 1000000]"] = 2
    checkpoint_minutes: Annotated[float, "(0, inf)"] = 10.0
    figure_every: Annotated[int, "[1, 1000000]"] = 1
    figure_images: Annotated[int, "[1, 1024]"] = 64


@dataclass(frozen=True)
class Config(Section):
    """The configuration of one run.

    Attributes:
        seed: of everything random: initialisation, shuffling, noise and dropout.
        data: the images.
        model: the networks.
        posterior: q(z|x).
        prior: p(z).
        likelihood: p(x|z).
        objective: what is minimised.
        optimizer: the rule of the steps.
        train: how it is minimised.
        output: what is kept.

    Examples:
        >>> import vae_jax
        >>> config = vae_jax.Config(seed=1)
        >>> config.seed, config.model.latent, config.prior.name
        (1, 20, 'standard_normal')
    """

    seed: Annotated[int, "[0, 4294967295]"] = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    posterior: PosteriorConfig = field(default_factory=PosteriorConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
