"""`vae-jax codes` and `vae-jax decode`: for models whose z are made of codes; decode takes any z."""

from pathlib import Path
from typing import Any

from vae_jax.cli.common import Verb, answer, load_data, open_run, out_option, run_options, split_of, target
from vae_jax.cli.pictures import ARRAYS, decoded, label_of, label_option, picture_target, sheet_of, write_pictures
from vae_jax.config import expand
from vae_jax.errors import UserError, listed


def _codes_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("--split", default="test", help="the images: test, validation or train")
    out_option(parser, "RUN/figures/codes_<SPLIT>.png")


def _codes(options: Any) -> None:
    path = target(options, f"figures/codes_{options.split}.png")
    trained, _ = open_run(options)
    import numpy as np

    from vae_jax.evaluation.codes import draw_use, use_of_codes
    from vae_jax.keys import make_keys
    from vae_jax.model.build import build
    from vae_jax.networks import places
    from vae_jax.training.checks import labels_for

    network, _ = build(trained.config, trained.image_shape)
    split = split_of(load_data(options, trained), options.split)
    key = make_keys(trained.config.seed).evaluate
    feature_map = places(trained.config.model, network.spec)
    in_place = feature_map is not None and network.latent_shape[:-1] == feature_map
    use = use_of_codes(network, trained.variables, key, split.images, labels_for(trained.config, split), in_place)
    figures = use.figures
    answer(
        f"{options.split}: {figures['codes_used']:.0f} of {use.total:,} codes used at {use.codes.shape[1]} places of "
        f"{len(split):,} {network.spec.noun}s; perplexity {figures['perplexity']:.2f}"
    )
    pictures = (split.images / 255).astype(np.float32) if network.spec.is_picture else None
    answer(str(draw_use(path, use, pictures)))


def _decode_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("file", metavar="FILE", help="an .npz file as `vae-jax encode` writes it, or an .npy array")
    parser.add_argument(
        "--array", default=None, help="of an .npz file; by default codes, if there are some, or mu, or z"
    )
    label_option(parser, "of all of them, instead of the file's `labels`")
    out_option(parser, f"RUN/figures/decoded.png{ARRAYS}")


def _decode(options: Any) -> None:
    path = picture_target(options, "figures/decoded")
    source = expand(options.file)
    label = label_of(options)
    z, labels = _read(source, options.array)
    trained, model = open_run(options)
    import numpy as np

    shape = trained.image_shape
    labels = np.full(len(z), label) if label is not None else labels if trained.config.model.classes else None
    if trained.config.model.classes and labels is None:
        raise UserError("--label: expected one, or an array `labels` in FILE, since this model gets labels; found none")
    sheet = sheet_of(path, shape, len(z), max(1, int(len(z) ** 0.5)), f"{source}, {len(z):,} of them")

    def inputs_of(numbers: range) -> tuple[Any, Any]:
        return z[numbers.start : numbers.stop], None if labels is None else labels[numbers.start : numbers.stop]

    write_pictures(path, sheet, trained, len(z), decoded(model, shape, len(z), inputs_of))


def _read(path: Path, name: str | None) -> tuple[Any, Any]:
    """Reads z or codes from a file, and labels if there are any.

    Raises:
        UserError: if there is no such file or array.
    """
    from vae_jax.data.npz import opened

    if path.suffix.lower() not in (".npy", ".npz") or not path.is_file():
        raise UserError(f"{path}: expected an .npy or .npz file; found {'another' if path.exists() else 'none'}")
    with opened(path) as file:
        names = ("codes", "mu", "z", "images") if name is None else (name,)
        chosen = next((name for name in names if name in file.names), None)
        if chosen is None:
            raise UserError(f"{path}: expected an array named {' or '.join(names[:3])}; found {listed(file.names)}")
        if len(file.header(chosen).shape) < 2:
            raise UserError(f"{path}, {chosen}: expected z or codes (n, …); found shape {file.header(chosen).shape}")
        if "labels" in file.names:
            file.header("labels")
        return file.read(chosen), file.read("labels") if "labels" in file.names else None


VERBS = {
    "codes": Verb(
        "draw how a model's codes are used, and images of some of them",
        _codes_options,
        _codes,
        "example:\n  vae-jax codes runs/vq --split train",
    ),
    "decode": Verb(
        "draw the images that given codes, or other z, decode to",
        _decode_options,
        _decode,
        "examples:\n"
        "  vae-jax decode runs/vq runs/vq/latents_test.npz      as `vae-jax encode runs/vq` writes it\n"
        "  vae-jax decode runs/vq mine.npy          codes (n, height, width), whole numbers, or z",
        usage="RUN FILE",
    ),
}
