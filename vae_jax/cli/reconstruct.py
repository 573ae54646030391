"""`vae-jax reconstruct` and `vae-jax encode`: images to reconstructions and latents."""

from pathlib import Path
from typing import Any

from vae_jax.cli import evaluate, sample, walks
from vae_jax.cli.arguments import whole
from vae_jax.cli.common import Verb, answer, open_run, out_option, positive, run_options, say, target
from vae_jax.cli.pictures import decoded, free, label_of, label_option, picture_target, save_arrays
from vae_jax.cli.run_data import load_data, say_unused, split_of, split_option
from vae_jax.config import expand
from vae_jax.errors import UserError, listed
from vae_jax.spec import NOT_IMAGE


def _reconstruct_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("images", metavar="IMAGES", nargs="*", help="image files; without any, test images")
    parser.add_argument("-n", type=whole, help="number of test images, spread over all of them (default 64)")
    label_option(parser, "of the image files")
    out_option(
        parser,
        "RUN/figures/reconstructions.png, or with the next number that is free; a name ending in .npz, the default if "
        "the data are no images, gets the arrays `originals` and `reconstructions`",
    )


def _reconstruct(options: Any) -> None:
    import numpy as np

    path = free(picture_target(options, "figures/reconstructions"), options)
    count, label = positive(64 if options.n is None else options.n, "-n"), label_of(options)
    if options.images and options.n is not None:
        raise UserError("-n: expected no image files with it, of which all are taken; found some")
    if path.exists() and any(path.samefile(image) for image in map(expand, options.images) if image.exists()):
        raise UserError(f"--out: expected another file than the images; found {path}")
    trained, model = open_run(options)
    from vae_jax.data import read_images
    from vae_jax.pictures.sheet import Pairs
    from vae_jax.training.checks import labels_for

    labels, names, what_names = None, [], ""
    if options.images:
        if trained.config.model.classes and label is None:
            raise UserError(
                "--label: expected the image files' label, since this model gets labels (model.classes); found none"
            )
        say_unused(options)
        images = read_images(options.images, trained.config.data)
        labels = None if label is None else np.full(len(images), label)
        names, what_names = [" ".join(Path(image).stem.split()) for image in options.images], "name"
    elif label is not None:
        raise UserError(f"--label: expected image files with it, since test images have labels; found {options.label}")
    else:
        data = load_data(options, trained)
        if count > len(data.test):
            say(f"-n {count}: there are {len(data.test):,} test images, of which all are taken")
        test = data.test.spread(count)
        images, labels = test.images, labels_for(trained.config, test)
        names, what_names = data.names_of(test.labels), "" if test.labels is None else "class"
    if path.suffix == ".npz":
        originals = images if trained.config.data.kind in NOT_IMAGE else np.float32(images / 255)
        save_arrays(path, originals=originals, reconstructions=np.asarray(model.reconstruct(images, labels)))
        answer(str(path))
        return
    drawn = Pairs(len(images), images.shape[1:], what="IMAGES" if options.images else f"-n {count}", names=what_names)
    mu = np.asarray(model.encode(images, labels)["mu"])

    def inputs_of(numbers: range) -> tuple[Any, Any]:
        return mu[numbers.start : numbers.stop], None if labels is None else labels[numbers.start : numbers.stop]

    for numbers, pictures in decoded(model, images.shape[1:], len(images), inputs_of):
        some = slice(numbers.start, numbers.stop)
        drawn.put(numbers.start, images[some] / 255, pictures, names[some])
    answer(str(drawn.save(path)))


def _encode_options(parser: Any) -> None:
    run_options(parser)
    split_option(parser)
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
    save_arrays(path, **arrays)
    answer(f"{path}: {listed(f'{name} {array.shape}' for name, array in arrays.items())}")


VERBS = {
    **evaluate.VERBS,
    "reconstruct": Verb(
        "draw images above their reconstructions",
        _reconstruct_options,
        _reconstruct,
        "example:\n  vae-jax reconstruct runs/digits my_digit.png",
        usage="RUN [IMAGES…]",
    ),
    **sample.VERBS,
    "encode": Verb(
        "save the latents of a run's images to an .npz file",
        _encode_options,
        _encode,
        "example:\n  vae-jax encode runs/digits --split train",
    ),
    **walks.VERBS,
}
