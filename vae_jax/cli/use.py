"""The commands that use a trained model: evaluate, reconstruct, sample, encode, interpolate, traverse."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_jax.cli import evaluate
from vae_jax.cli.arguments import number, whole
from vae_jax.cli.common import (
    Verb,
    answer,
    load_data,
    open_run,
    out_option,
    positive,
    progress,
    run_options,
    say,
    seed_of,
    split_of,
    target,
)
from vae_jax.config import expand
from vae_jax.errors import UserError, listed, quoted
from vae_jax.files.replace import replacing
from vae_jax.runs.folder import read_config, read_data
from vae_jax.spec import OTHERS

if TYPE_CHECKING:
    from vae_jax.model.use import Model
    from vae_jax.pictures.sheet import Sheet
    from vae_jax.training.state import Trained

NUMBER = re.compile(r"[+-]?[0-9]{1,9}")
SOURCES = ("prior", "gmm", "second_stage")  # of z; the last two are in vae_jax/evaluation/samplers.py


def label_option(parser: Any, what: str) -> None:
    meaning = f"a class's name or number, where the model is told labels (model.classes): {what}"
    parser.add_argument("--label", default=None, help=meaning)


def label_of(options: Any) -> int | None:
    """The number of the class given, where the model is told labels; a name comes before a number.

    Raises:
        UserError: if the model knows no such class, or there is no such run.
    """
    label, folder = options.label, expand(options.run)
    classes = read_config(folder).model.classes
    if label is None:
        return None
    if not classes:
        raise UserError(f"--label: expected none for a model that is told no labels (model.classes 0); found {label}")
    noted = read_data(folder)
    names = (noted.class_names if noted else None) or ()
    number = int(label) if NUMBER.fullmatch(label) else None
    if label in names[:classes]:
        if number not in (None, names.index(label)):
            say(f"--label {label}: the class of this name, whose number is {names.index(label)}")
        return names.index(label)
    if number is None or not 0 <= number < classes:
        named = [f"{number} {name}" for number, name in enumerate(names[:classes]) if name != str(number)]
        known = f"a number from 0 to {classes - 1}" + (f" or a class's name ({listed(named)})" * bool(named))
        raise UserError(f"--label: expected {known}; found {label}")
    return number


def _save_arrays(path: Path, **arrays: Any) -> None:
    """Writes an .npz file so that no half-written one is ever seen."""
    import numpy as np

    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def _save_blocks(path: Path, name: str, count: int, blocks: Iterator[tuple[range, Any]]) -> None:
    """Writes so many pictures or examples, which come in blocks, as `_save_arrays(path, **{name: …})` would."""
    import zipfile

    import numpy as np

    with (
        replacing(path) as file,
        zipfile.ZipFile(file, "w") as made,
        made.open(f"{name}.npy", "w", force_zip64=True) as images,
    ):
        for numbers, pictures in blocks:
            if not numbers.start:
                header = np.lib.format.header_data_from_array_1_0(pictures)
                np.lib.format.write_array_header_1_0(images, {**header, "shape": (count, *pictures.shape[1:])})
            images.write(pictures.tobytes())


BLOCK = 1 << 26  # bytes of pictures that are decoded at a time


def decoded(
    model: "Model", shape: tuple[int, ...], count: int, given: Callable[[range], tuple[Any, Any]]
) -> Iterator[tuple[range, Any]]:
    """Pictures decoded block by block, which memory holds however many they are, and their numbers.

    The blocks are whole batches, so that each picture is as if all were decoded at once.

    Args:
        model: decodes.
        shape: of a picture.
        count: of the pictures.
        given: numbers of pictures -> their z and their labels.
    """
    import numpy as np

    from vae_jax.model.batches import BATCH

    size = max(1, BLOCK // (4 * math.prod(shape) * BATCH)) * BATCH
    for first in range(0, count, size):
        numbers = range(first, min(first + size, count))
        yield numbers, np.asarray(model.decode(*given(numbers)))


ARRAYS = "; a name ending in .npz, as by default where the data are no images, gets the array `images` or `examples`"


def picture_target(options: Any, stem: str) -> Path:
    """The file that pictures go to, or the arrays of examples that are none.

    Raises:
        UserError: as `target`; if examples that are no pictures are to be one.
    """
    config = read_config(expand(options.run)).data
    path = target(options, f"{stem}.npz" if config.kind in OTHERS else f"{stem}.png")
    if config.kind in OTHERS and path.suffix != ".npz":
        raise UserError(
            f"--out: expected a name ending in .npz, since data of kind {config.kind} are no pictures; found {path}"
        )
    return path


def sheet_of(path: Path, shape: tuple[int, ...], count: int, columns: int, what: str) -> "Sheet | None":
    """The picture that so many pictures make; None where arrays are written."""
    from vae_jax.pictures.sheet import Sheet

    return None if path.suffix == ".npz" else Sheet(count, shape, columns=columns, what=what)


def write_pictures(
    path: Path, sheet: "Sheet | None", trained: "Trained", count: int, blocks: Iterator[tuple[range, Any]]
) -> None:
    """Writes what comes in blocks, as a picture or as an array."""
    if sheet is None:
        _save_blocks(path, f"{trained.config.data.noun}s", count, blocks)
        answer(str(path))
        return
    for numbers, pictures in blocks:
        sheet.put(numbers, pictures)
    answer(str(sheet.save(path)))


def _reconstruct_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("images", metavar="IMAGES", nargs="*", help="image files; without any, test images")
    parser.add_argument("-n", type=whole, default=64, help="how many test images, spread over all of them")
    label_option(parser, "the one of the image files")
    out_option(
        parser,
        "RUN/figures/reconstructions.png; a name ending in .npz, as by default where the data are no images, gets the "
        "arrays `originals` and `reconstructions`",
    )


def _reconstruct(options: Any) -> None:
    import numpy as np

    path = picture_target(options, "figures/reconstructions")
    count, label = positive(options.n, "-n"), label_of(options)
    trained, model = open_run(options)
    from vae_jax.data import read_images
    from vae_jax.pictures.sheet import Pairs
    from vae_jax.training.checks import labels_for

    labels = None
    if options.images:
        if trained.config.model.classes and label is None:
            raise UserError(
                "--label: expected the label of the image files, which this model is told (model.classes); found none"
            )
        images = read_images(options.images, trained.config.data)
        labels = None if label is None else np.full(len(images), label)
    elif label is not None:
        raise UserError(f"--label: expected image files that it is of, test images have theirs; found {options.label}")
    else:
        test = load_data(options, trained).test.spread(count)
        images, labels = test.images, labels_for(trained.config, test)
    if path.suffix == ".npz":
        originals = images if trained.config.data.kind in OTHERS else np.float32(images / 255)
        _save_arrays(path, originals=originals, reconstructions=np.asarray(model.reconstruct(images, labels)))
        answer(str(path))
        return
    drawn = Pairs(len(images), images.shape[1:], what="IMAGES" if options.images else f"-n {count}")
    mu = np.asarray(model.encode(images, labels)["mu"])

    def given(numbers: range) -> tuple[Any, Any]:
        return mu[numbers.start : numbers.stop], None if labels is None else labels[numbers.start : numbers.stop]

    for numbers, pictures in decoded(model, images.shape[1:], len(images), given):
        drawn.put(numbers.start, images[numbers.start : numbers.stop] / 255, pictures)
    answer(str(drawn.save(path)))


def _sample_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("-n", type=whole, default=64, help="how many")
    parser.add_argument("--seed", type=whole, default=0, help="the same seed gives the same pictures")
    parser.add_argument(
        "--temperature",
        default=None,
        metavar="T,…",
        help="of a prior over codes: below 1 likelier codes are drawn more often; of several each gets rows of its own",
    )
    parser.add_argument(
        "--top-p",
        type=number,
        default=None,
        metavar="P",
        help="of a prior over codes: only the likeliest codes are drawn, whose probabilities sum up to P",
    )
    parser.add_argument(
        "--from",
        default="prior",
        help="where z comes from: prior, or a density fitted now to the training images' latents, which makes an "
        "autoencoder generative too: gmm (a mixture of 10 Gaussians) or second_stage (a VAE of z)",
    )
    label_option(parser, "of all pictures; by default each in turn")
    out_option(
        parser,
        "RUN/figures/samples_seed<SEED>.png, with --from and the label's number in its name where they are given"
        f"{ARRAYS}, of categories their probabilities",
    )


def _sample(options: Any) -> None:
    import numpy as np

    source = getattr(options, "from")
    if source not in SOURCES:
        raise UserError(f"--from: expected {', '.join(SOURCES[:-1])} or {SOURCES[-1]}; found {quoted(source)}")
    label = label_of(options)
    temperatures, how = _ways(options, source)
    named = ("" if source == "prior" else f"{source}_") + ("" if label is None else f"label{label}_")
    named += f"temperature{options.temperature}_".replace(",", "_") if options.temperature else ""
    named += "" if options.top_p is None else f"top{options.top_p:g}_"
    path = picture_target(options, f"figures/samples_{named}seed{options.seed}")
    count, seed = positive(options.n, "-n"), seed_of(options)
    trained, model = open_run(options)
    import jax

    from vae_jax.keys import sampling_key

    classes, labels, shape = trained.config.model.classes, None, trained.image_shape
    total, columns = count * len(temperatures), max(1, int(count**0.5)) if len(temperatures) == 1 else count
    sheet = sheet_of(path, shape, total, columns, f"-n {count}")
    if classes:
        labels = np.arange(count) % classes if label is None else np.full(count, label)
    key = jax.random.key(seed)
    if source != "prior":
        z = _fitted(options, trained, source)(sampling_key(key), count)
    elif model.draw is None:
        raise UserError(
            f"--from: expected gmm or second_stage for objective {trained.config.objective.name}, which has no prior "
            f"to sample from; found prior"
        )
    else:
        ways = [how if temperature is None else {**how, "temperature": temperature} for temperature in temperatures]
        z = np.concatenate([np.asarray(model.draw(key, count, labels, **way)) for way in ways])
        labels = None if labels is None else np.tile(labels, len(ways))

    def given(numbers: range) -> tuple[Any, Any]:
        return z[numbers.start : numbers.stop], None if labels is None else labels[numbers.start : numbers.stop]

    if len(temperatures) > 1:
        say(f"rows: temperature {', '.join(f'{temperature:g}' for temperature in temperatures)}, from the top")
    write_pictures(path, sheet, trained, total, decoded(model, shape, total, given))


def _ways(options: Any, source: str) -> tuple[list[Any], dict[str, float]]:
    """The temperatures to draw at, None for the prior's own, and what else the prior is given.

    Raises:
        UserError: if one is no number in its range, or z does not come from the prior.
    """
    for name, given in (("--temperature", options.temperature), ("--top-p", options.top_p)):
        if given is not None and source != "prior":
            raise UserError(f"{name}: expected --from prior with it; found --from {source}")
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise UserError(f"--top-p: expected a number in (0, 1]; found {options.top_p}")
    how = {} if options.top_p is None else {"top_p": options.top_p}
    if options.temperature is None:
        return [None], how
    try:
        temperatures = [float(part) for part in options.temperature.split(",")]
    except ValueError:
        temperatures = []
    if not temperatures or not all(0 < temperature <= 100 for temperature in temperatures):
        raise UserError(
            f"--temperature: expected numbers in (0, 100] with commas between them; found {quoted(options.temperature)}"
        )
    return temperatures, how


def _fitted(options: Any, trained: "Trained", source: str) -> Any:
    """The sampler of z, fitted with the run's own seed: --seed chooses what is drawn from it, not what it is."""
    from vae_jax.evaluation import samplers
    from vae_jax.keys import make_keys
    from vae_jax.model.build import build
    from vae_jax.training.checks import labels_for

    network, _ = build(trained.config, trained.image_shape)
    images = load_data(options, trained).train
    key, labels = make_keys(trained.config.seed).samplers, labels_for(trained.config, images)
    with progress(f"fitting {source}") as on_progress:
        return samplers.fit_sampler(
            source, network, trained.variables, images.images, key, labels, on_progress=on_progress
        )


def _encode_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("--split", default="test", help="the images: test, validation or train")
    out_option(parser, "RUN/latents_<SPLIT>.npz")


def _encode(options: Any) -> None:
    import numpy as np

    path = target(options, f"latents_{options.split}.npz")
    trained, model = open_run(options)
    from vae_jax.training.checks import labels_for

    data = load_data(options, trained)
    split = split_of(data, options.split)
    arrays = {
        name: np.asarray(head) for name, head in model.encode(split.images, labels_for(trained.config, split)).items()
    }
    if split.labels is not None:
        arrays["labels"] = split.labels
        if data.class_names is not None:
            arrays["class_names"] = np.array(data.class_names)
    _save_arrays(path, **arrays)
    answer(f"{path}: {listed(f'{name} {array.shape}' for name, array in arrays.items())}")


def _interpolate_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("-n", type=whole, default=8, help="rows, each from one test image to another")
    parser.add_argument("--steps", type=whole, default=12, help="pictures in a row")
    parser.add_argument("--seed", type=whole, default=0, help="chooses the test images")
    out_option(parser, f"RUN/figures/interpolation.png{ARRAYS}, row by row")


def _interpolate(options: Any) -> None:
    import numpy as np

    path = picture_target(options, "figures/interpolation")
    rows, steps, seed = positive(options.n, "-n"), positive(options.steps, "--steps"), seed_of(options)
    trained, model = open_run(options)
    from vae_jax.device import memory
    from vae_jax.training.checks import labels_for

    what = f"-n {rows}, --steps {steps}"
    sheet = sheet_of(path, trained.image_shape, rows * steps, steps, what)
    test = load_data(options, trained).test
    memory.check(2 * rows * test.images[0].nbytes, f"{what}: {2 * rows:,} images to begin and to end with")
    chosen = np.random.RandomState(seed).choice(len(test), 2 * rows, replace=2 * rows > len(test))
    labels = labels_for(trained.config, test)
    labels = None if labels is None else labels[chosen]
    encoded = model.encode(test.images[chosen], labels)
    ends = np.asarray(encoded["mu"])
    ends = ends.reshape(2, rows, *ends.shape[1:])
    weights = np.linspace(0, 1, steps)
    if "codes" in encoded:
        say("between two images lie mixtures of their codes' vectors, which are decoded as they are: no codes are")

    def given(numbers: range) -> tuple[Any, Any]:
        row, column = np.divmod(np.arange(numbers.start, numbers.stop), steps)
        weight = weights[column]
        weight = weight.reshape(-1, *(1,) * (ends.ndim - 2))
        z = (1 - weight) * ends[0, row] + weight * ends[1, row]
        if labels is None:
            return z, None
        # There is nothing between two labels: each half of a row has the one of its end.
        return z, np.where(weights[column] <= 0.5, labels[row], labels[rows + row])

    write_pictures(path, sheet, trained, rows * steps, decoded(model, trained.image_shape, rows * steps, given))


def _traverse_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("--image", type=whole, default=0, help="number of the test image to start from")
    parser.add_argument("--steps", type=whole, default=11, help="pictures in a row")
    parser.add_argument("--extent", type=number, default=3.0, help="each dimension runs from -EXTENT to EXTENT")
    out_option(parser, f"RUN/figures/traversal.png{ARRAYS}, row by row")


def _traverse(options: Any) -> None:
    import numpy as np

    path = picture_target(options, "figures/traversal")
    steps = positive(options.steps, "--steps")
    if not 0 < options.extent <= 1000:
        raise UserError(f"--extent: expected a number in (0, 1000]; found {options.extent}")
    trained, model = open_run(options)
    from vae_jax.model.build import build
    from vae_jax.model.fits import check_vectors
    from vae_jax.training.checks import labels_for

    check_vectors(build(trained.config, trained.image_shape).network, "RUN")
    sheet = sheet_of(path, trained.image_shape, model.latent * steps, steps, f"--steps {steps}")
    test = load_data(options, trained).test
    if not 0 <= options.image < len(test):
        raise UserError(f"--image: expected a number from 0 to {len(test) - 1}; found {options.image}")
    labels = labels_for(trained.config, test)
    labels = None if labels is None else labels[options.image : options.image + 1]
    start = np.asarray(model.encode(test.images[options.image : options.image + 1], labels)["mu"])
    values = np.linspace(-options.extent, options.extent, steps)

    def given(numbers: range) -> tuple[Any, Any]:
        dimension, step = np.divmod(np.arange(numbers.start, numbers.stop), steps)
        z = start.repeat(len(numbers), 0)
        z[np.arange(len(numbers)), dimension] = values[step]
        return z, None if labels is None else labels.repeat(len(numbers))

    count = model.latent * steps
    write_pictures(path, sheet, trained, count, decoded(model, trained.image_shape, count, given))


VERBS = {
    **evaluate.VERBS,
    "reconstruct": Verb(
        "draw images above their reconstructions",
        _reconstruct_options,
        _reconstruct,
        "example:\n  vae-jax reconstruct runs/digits my_digit.png",
        usage="RUN [IMAGES…]",
    ),
    "sample": Verb(
        "draw new images",
        _sample_options,
        _sample,
        "examples:\n"
        "  vae-jax sample runs/digits -n 64 --seed 0          from the prior\n"
        "  vae-jax sample runs/digits --from gmm              from a mixture fitted to the latents\n"
        "  vae-jax sample runs/conditional --label 3          of a model that is told labels; or a class's name",
    ),
    "encode": Verb(
        "save the latents of a run's images to an .npz file",
        _encode_options,
        _encode,
        "example:\n  vae-jax encode runs/digits --split train",
    ),
    "interpolate": Verb(
        "draw what lies between pairs of test images",
        _interpolate_options,
        _interpolate,
        "example:\n  vae-jax interpolate runs/digits -n 8 --steps 12",
    ),
    "traverse": Verb(
        "draw a test image with each latent dimension varied",
        _traverse_options,
        _traverse,
        "example:\n  vae-jax traverse runs/digits --image 3 --extent 3",
    ),
}
