"""`vae-jax interpolate` and `vae-jax traverse`: draw paths through the latent space."""

from typing import TYPE_CHECKING, Any

from vae_jax.cli.arguments import number, whole
from vae_jax.cli.common import (
    Verb,
    load_data,
    open_run,
    out_option,
    positive,
    run_options,
    say,
    seed_of,
)
from vae_jax.errors import UserError

if TYPE_CHECKING:
    pass
from vae_jax.cli.pictures import ARRAYS, decoded, picture_target, sheet_of, write_pictures


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

    write_pictures(path, sheet, trained, rows * steps, decoded(model, trained.image_shape, rows * steps, inputs_of))


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

    check_vectors(build(trained.config, trained.image_shape).composition, "RUN")
    sheet = sheet_of(path, trained.image_shape, model.latent * steps, steps, f"--steps {steps}")
    test = load_data(options, trained).test
    if not 0 <= options.image < len(test):
        raise UserError(f"--image: expected a number from 0 to {len(test) - 1}; found {options.image}")
    labels = labels_for(trained.config, test)
    labels = None if labels is None else labels[options.image : options.image + 1]
    start = np.asarray(model.encode(test.images[options.image : options.image + 1], labels)["mu"])
    values = np.linspace(-options.extent, options.extent, steps)

    def inputs_of(numbers: range) -> tuple[Any, Any]:
        dimension, step = np.divmod(np.arange(numbers.start, numbers.stop), steps)
        z = start.repeat(len(numbers), 0)
        z[np.arange(len(numbers)), dimension] = values[step]
        return z, None if labels is None else labels.repeat(len(numbers))

    count = model.latent * steps
    write_pictures(path, sheet, trained, count, decoded(model, trained.image_shape, count, inputs_of))


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
