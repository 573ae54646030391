"""`vae-jax interpolate` and `vae-jax traverse`: draw paths through the latent space."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vae_jax.cli.arguments import number, whole
from vae_jax.cli.common import Verb, open_run, out_option, positive, run_options, say, seed_of
from vae_jax.cli.run_data import load_data
from vae_jax.errors import UserError, listed

if TYPE_CHECKING:
    from vae_jax.data.split import Split
    from vae_jax.model.composition import Composition
    from vae_jax.training.state import Trained
from vae_jax.cli.pictures import ARRAYS, decoded, picture_target, sheet_of, write_pictures

IMAGES = 1024  # test images whose KL says how much a dimension is used


def _interpolate_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("-n", type=whole, default=8, help="rows, each from one test image to another")
    parser.add_argument("--steps", type=whole, default=12, help="pictures in a row")
    parser.add_argument("--seed", type=whole, default=0, help="chooses the test images")
    out_option(parser, f"RUN/figures/interpolation.png, with the test images at both ends{ARRAYS}, without them")


def _interpolate(options: Any) -> None:
    import numpy as np

    path = picture_target(options, "figures/interpolation")
    rows, steps, seed = positive(options.n, "-n"), positive(options.steps, "--steps"), seed_of(options)
    trained, model = open_run(options)
    from vae_jax.device import memory
    from vae_jax.training.checks import labels_for

    what = f"-n {rows}, --steps {steps}"
    sheet = sheet_of(path, trained.image_shape, rows * (steps + 2), steps + 2, what)
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
        say(
            "the z between two images are mixtures of their codes' vectors, which are decoded without rounding to codes"
        )

    def inputs_of(numbers: range) -> tuple[Any, Any]:
        row, column = np.divmod(np.arange(numbers.start, numbers.stop), steps)
        weight = weights[column]
        weight = weight.reshape(-1, *(1,) * (ends.ndim - 2))
        z = (1 - weight) * ends[0, row] + weight * ends[1, row]
        if labels is None:
            return z, None
        # Labels cannot be mixed: each half of a row has the label of its end.
        return z, np.where(weights[column] <= 0.5, labels[row], labels[rows + row])

    def between_images() -> Iterator[tuple[Sequence[int], Any]]:
        """The pictures by their places in a sheet that has a row's two images at its ends."""
        first = np.arange(rows) * (steps + 2)
        yield [*first.tolist(), *(first + steps + 1).tolist()], test.images[chosen] / np.float32(255)
        for numbers, pictures in blocks:
            row, column = np.divmod(np.arange(numbers.start, numbers.stop), steps)
            yield (row * (steps + 2) + 1 + column).tolist(), pictures

    blocks = decoded(model, trained.image_shape, rows * steps, inputs_of)
    write_pictures(path, sheet, trained, rows * steps, between_images() if sheet else blocks)


def _traverse_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("--image", type=whole, default=0, help="number of the test image to start from")
    parser.add_argument("--steps", type=whole, default=11, help="pictures in a row")
    parser.add_argument("--extent", type=number, default=3.0, help="each dimension runs from -EXTENT to EXTENT")
    out_option(
        parser,
        "RUN/figures/traversal.png, a row a dimension, the most used one first, without those that say next to nothing "
        f"about images{ARRAYS}, of all dimensions by number",
    )


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

    composition = build(trained.config, trained.image_shape).composition
    check_vectors(composition, "RUN")
    sheet_of(path, trained.image_shape, model.latent * steps, steps, f"--steps {steps}")  # refuses too many pictures
    test = load_data(options, trained).test
    if not 0 <= options.image < len(test):
        raise UserError(f"--image: expected a number from 0 to {len(test) - 1}; found {options.image}")
    rows, names = list(range(model.latent)), []
    if path.suffix != ".npz":
        rows, names = _used(trained, composition, test)
    title = f"one dimension of z in a row, from {-options.extent:g} to {options.extent:g}"
    sheet = sheet_of(path, trained.image_shape, len(rows) * steps, steps, f"--steps {steps}", title=title, rows=names)
    labels = labels_for(trained.config, test)
    labels = None if labels is None else labels[options.image : options.image + 1]
    start = np.asarray(model.encode(test.images[options.image : options.image + 1], labels)["mu"])
    values = np.linspace(-options.extent, options.extent, steps)

    def inputs_of(numbers: range) -> tuple[Any, Any]:
        row, step = np.divmod(np.arange(numbers.start, numbers.stop), steps)
        z = start.repeat(len(numbers), 0)
        z[np.arange(len(numbers)), np.asarray(rows)[row]] = values[step]
        return z, None if labels is None else labels.repeat(len(numbers))

    count = len(rows) * steps
    write_pictures(path, sheet, trained, count, decoded(model, trained.image_shape, count, inputs_of))


def _used(trained: "Trained", composition: "Composition", test: "Split") -> tuple[list[int], list[str]]:
    """The dimensions to draw, the most used one first, with their names; says which ones are left out."""
    from vae_jax.evaluation.latents import use_of_dimensions
    from vae_jax.keys import diagnostics_key, make_keys
    from vae_jax.training.checks import labels_for

    some = test.spread(min(IMAGES, len(test)))
    key = diagnostics_key(make_keys(trained.config.seed).evaluate)
    use = use_of_dimensions(composition, trained.variables, key, some.images, labels_for(trained.config, some))
    kept = [place for place in range(len(use.order)) if not use.inert[place]]
    if not kept:
        say("every dimension says next to nothing about the images, so none is left out")
        kept = list(range(len(use.order)))
    elif len(kept) < len(use.order):
        inert = sorted(int(use.order[place]) for place in range(len(use.order)) if use.inert[place])
        measure = "mean KL below 0.01 nats" if use.by == "KL" else "variance of the mean below 0.01"
        say(f"left out, since they say next to nothing about the images ({measure}): z {listed(inert)}")
    unit = " nats" if use.by == "KL" else ""
    names = [f"z {use.order[place]}  {use.use[place]:.2f}{unit}" for place in kept]
    return [int(use.order[place]) for place in kept], names


VERBS = {
    "interpolate": Verb(
        "draw the path between pairs of test images",
        _interpolate_options,
        _interpolate,
        "example:\n  vae-jax interpolate runs/digits -n 8 --steps 12",
    ),
    "traverse": Verb(
        "draw a test image while one latent dimension after another varies",
        _traverse_options,
        _traverse,
        "example:\n  vae-jax traverse runs/digits --image 3 --extent 3",
    ),
}
