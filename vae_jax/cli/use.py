"""The commands that use a trained model: evaluate, reconstruct, sample, encode, interpolate, traverse."""

import json
from typing import TYPE_CHECKING, Any

from vae_jax.cli.common import Verb, load_data, open_run, out_option, positive, run_options, seed_of, target
from vae_jax.errors import UserError

if TYPE_CHECKING:
    from vae_jax.data import Dataset


def _evaluate_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("--latent", type=str, default="sample", help="z from the posterior: sample, or its mean")
    parser.add_argument("--split", type=str, default="test", help="the images: test, validation or train")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _split(data: "Dataset", name: str) -> Any:
    splits = {"test": data.test, "validation": data.validation, "train": data.train}
    if splits.get(name) is None:
        found = [split for split, images in splits.items() if images is not None]
        raise UserError(f"--split: expected one of {', '.join(found)} (what this run has); found {name!r}")
    return splits[name]


def _evaluate(options: Any) -> None:
    if options.latent not in ("sample", "mean"):
        raise UserError(f"--latent: expected sample or mean; found {options.latent!r}")
    trained, _ = open_run(options)
    from vae_jax import train
    from vae_jax.composition import build
    from vae_jax.evaluate import make_evaluator, means

    network, objective = build(trained.config, trained.image_shape)
    split = _split(load_data(options, trained), options.split)
    images, labels = split.images, train.told(trained.config, split)
    evaluate = make_evaluator(trained.config, network, objective, images, options.latent, labels)
    terms = evaluate(trained.state.variables, train.make_keys(trained.config.seed).evaluate)
    loss, reconstruction, kl = means(terms)
    found = {
        "loss": loss,
        "reconstruction": reconstruction,
        "kl": kl,
        "images": len(images),
        "unit": objective.unit,
        "split": options.split,
        "latent": options.latent,
        "checkpoint": options.checkpoint,
    }
    if options.json:
        print(json.dumps(found))
        return
    parts = f" = reconstruction {reconstruction:.3f} + KL {kl:.3f}" if objective.generative else ""
    drawn = f", z: {options.latent}" if objective.generative else ""
    print(f"{options.split} loss {loss:.3f}{parts} {objective.unit} ({len(images):,} images{drawn})")


def _reconstruct_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("images", metavar="IMAGES", type=str, nargs="*", help="image files; without any, test images")
    parser.add_argument("-n", type=int, default=64, help="how many test images")
    out_option(parser, "RUN/figures/reconstructions.png")


def _reconstruct(options: Any) -> None:
    import numpy as np

    path = target(options, "figures/reconstructions.png")
    count = positive(options.n, "-n")
    trained, model = open_run(options)
    from vae_jax import figures
    from vae_jax.data import read_images

    if options.images:
        images = read_images(options.images, trained.config.data)
    else:
        images = load_data(options, trained).test.images[:count]
    print(figures.pairs(path, images / 255, np.asarray(model.reconstruct(images))))


def _sample_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("-n", type=int, default=64, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same pictures")
    out_option(parser, "RUN/figures/samples_seed<SEED>.png; a name ending in .npz gets the array `images` instead")


def _sample(options: Any) -> None:
    import numpy as np

    path = target(options, f"figures/samples_seed{options.seed}.png")
    count, seed = positive(options.n, "-n"), seed_of(options)
    trained, model = open_run(options)
    import jax

    from vae_jax import figures

    if model.sample is None:
        raise UserError(
            f"{options.run}: expected a model with a prior to sample from; found objective "
            f"{trained.config.objective.name}"
        )
    pictures = np.asarray(model.sample(jax.random.key(seed), count))
    if path.suffix == ".npz":
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=pictures)
        print(path)
    else:
        print(figures.grid(path, pictures, columns=max(1, int(count**0.5))))


def _encode_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("--split", type=str, default="test", help="the images: test, validation or train")
    out_option(parser, "RUN/latents_<SPLIT>.npz")


def _encode(options: Any) -> None:
    import numpy as np

    path = target(options, f"latents_{options.split}.npz")
    trained, model = open_run(options)
    split = _split(load_data(options, trained), options.split)
    arrays = {name: np.asarray(head) for name, head in model.encode(split.images).items()}
    if split.labels is not None:
        arrays["labels"] = split.labels
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # np.savez would add .npz to a name without it
        np.savez(file, allow_pickle=False, **arrays)
    print(f"{path}: {', '.join(f'{name} {array.shape}' for name, array in arrays.items())}")


def _interpolate_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("-n", type=int, default=8, help="rows, each from one test image to another")
    parser.add_argument("--steps", type=int, default=12, help="pictures in a row")
    parser.add_argument("--seed", type=int, default=0, help="chooses the test images")
    out_option(parser, "RUN/figures/interpolation.png")


def _interpolate(options: Any) -> None:
    import numpy as np

    path = target(options, "figures/interpolation.png")
    rows, steps, seed = positive(options.n, "-n"), positive(options.steps, "--steps"), seed_of(options)
    trained, model = open_run(options)
    from vae_jax import figures

    images = load_data(options, trained).test.images
    chosen = np.random.RandomState(seed).choice(len(images), 2 * rows, replace=2 * rows > len(images))
    ends = np.asarray(model.encode(images[chosen])["mu"]).reshape(2, rows, 1, -1)
    weights = np.linspace(0, 1, steps)[None, :, None]
    z = (1 - weights) * ends[0] + weights * ends[1]
    pictures = np.asarray(model.decode(z.reshape(rows * steps, -1)))
    print(figures.grid(path, pictures, columns=steps))


def _traverse_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("--image", type=int, default=0, help="number of the test image to start from")
    parser.add_argument("--steps", type=int, default=11, help="pictures in a row")
    parser.add_argument("--extent", type=float, default=3.0, help="each dimension runs from -EXTENT to EXTENT")
    out_option(parser, "RUN/figures/traversal.png")


def _traverse(options: Any) -> None:
    import numpy as np

    path = target(options, "figures/traversal.png")
    steps = positive(options.steps, "--steps")
    if not 0 < options.extent <= 1000:
        raise UserError(f"--extent: expected a number in (0, 1000]; found {options.extent}")
    trained, model = open_run(options)
    from vae_jax import figures

    images = load_data(options, trained).test.images
    if not 0 <= options.image < len(images):
        raise UserError(f"--image: expected a number from 0 to {len(images) - 1}; found {options.image}")
    z = np.asarray(model.encode(images[options.image : options.image + 1])["mu"])
    z = z.repeat(model.latent * steps, 0).reshape(model.latent, steps, model.latent)
    for dimension in range(model.latent):
        z[dimension, :, dimension] = np.linspace(-options.extent, options.extent, steps)
    pictures = np.asarray(model.decode(z.reshape(-1, model.latent)))
    print(figures.grid(path, pictures, columns=steps))


VERBS = {
    "evaluate": Verb(
        "print the loss of a run's model on its test images",
        _evaluate_options,
        _evaluate,
        "example:\n  vae-jax evaluate runs/digits --latent mean --json",
    ),
    "reconstruct": Verb(
        "draw images above their reconstructions",
        _reconstruct_options,
        _reconstruct,
        "example:\n  vae-jax reconstruct runs/digits my_digit.png",
        usage="RUN [IMAGES…]",
    ),
    "sample": Verb(
        "draw new images from the prior",
        _sample_options,
        _sample,
        "example:\n  vae-jax sample runs/digits -n 64 --seed 0",
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
