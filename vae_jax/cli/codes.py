"""`vae-jax codes` and `vae-jax decode`: for models whose z are made of codes; decode takes any z."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_jax.cli.common import Verb, answer, open_run, out_option, run_options, say, target
from vae_jax.cli.pictures import ARRAYS, decoded, label_of, label_option, picture_target, sheet_of, write_pictures
from vae_jax.cli.run_data import load_data, split_of, split_option
from vae_jax.config import expand
from vae_jax.errors import UserError, listed

if TYPE_CHECKING:
    from vae_jax.model.composition import Composition


def _codes_options(parser: Any) -> None:
    run_options(parser)
    split_option(parser)
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

    composition, _ = build(trained.config, trained.image_shape)
    split = split_of(load_data(options, trained), options.split)
    key = make_keys(trained.config.seed).evaluate
    feature_map = places(trained.config.model, composition.spec)
    in_place = feature_map is not None and composition.latent_shape[:-1] == feature_map
    use = use_of_codes(composition, trained.variables, key, split.images, labels_for(trained.config, split), in_place)
    figures = use.figures
    answer(
        f"{options.split}: {figures['codes_used']:.0f} of {use.total:,} codes used at {use.codes.shape[1]} places of "
        f"{len(split):,} {composition.spec.noun}s; perplexity {figures['perplexity']:.2f}"
    )
    pictures = (split.images / 255).astype(np.float32) if composition.spec.is_picture else None
    answer(str(draw_use(path, use, pictures)))


def _decode_options(parser: Any) -> None:
    run_options(parser, data=False)
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
    name, z, labels = _read(source, options.array)
    trained, model = open_run(options)
    import numpy as np

    from vae_jax.model.build import build

    shape = trained.image_shape
    z = _checked(f"{source}, {name}" if name else str(source), name, z, build(trained.config, shape).composition)
    labels = np.full(len(z), label) if label is not None else labels if trained.config.model.classes else None
    if trained.config.model.classes and labels is None:
        raise UserError("--label: expected one, or an array `labels` in FILE, since this model gets labels; found none")
    sheet = sheet_of(path, shape, len(z), max(1, int(len(z) ** 0.5)), f"{source}, {len(z):,} of them")

    def inputs_of(numbers: range) -> tuple[Any, Any]:
        return z[numbers.start : numbers.stop], None if labels is None else labels[numbers.start : numbers.stop]

    try:
        write_pictures(path, sheet, trained, len(z), decoded(model, shape, len(z), inputs_of))
    except UserError as error:
        if not str(error).startswith("labels:"):
            raise
        raise UserError(f"{source}, {error}") from error


def _read(path: Path, name: str | None) -> tuple[str, Any, Any]:
    """The name of an array, empty of an .npy file's; the array, z or codes; and labels if there are any.

    Raises:
        UserError: if there is no such file or array.
    """
    from vae_jax.data.npz import opened

    if path.suffix.lower() not in (".npy", ".npz") or not path.is_file():
        raise UserError(f"{path}: expected an .npy or .npz file; found {'another' if path.exists() else 'none'}")
    with opened(path) as file:
        alone = path.suffix.lower() == ".npy"
        names = ("codes", "mu", "z") if name is None else (name,)
        chosen = file.names[0] if alone else next((known for known in names if known in file.names), None)
        if alone and name is not None:
            raise UserError(f"--array: expected an .npz file, whose arrays have names; found {path}")
        if chosen is None:
            kept = listed(file.names) or "no array"
            raise UserError(f"{path}: expected an array named {' or '.join(names)}; found {kept}")
        where = str(path) if alone else f"{path}, {chosen}"
        if len(file.header(chosen).shape) < 2:
            raise UserError(f"{where}: expected z or codes (n, …); found shape {file.header(chosen).shape}")
        labels = None if alone or "labels" not in file.names else "labels"
        if labels:
            file.header(labels)
        return "" if alone else chosen, file.read(chosen), file.read(labels) if labels else None


def _checked(where: str, name: str, z: Any, composition: "Composition") -> Any:
    """z or codes as the model decodes them: z as floats, codes as whole numbers.

    What has the shape of codes alone is codes. What has that of z too is codes if it is called so, or has a type of
    whole numbers and is not called mu or z; if it has no name, it is said what it is taken for.

    Raises:
        UserError: naming the array, what was expected and found.
    """
    import jax
    import numpy as np

    codes, latent = composition.posterior.codes, composition.latent_shape
    shapes = [f"z (n, {', '.join(map(str, latent))})"]
    shapes += [f"codes (n, {', '.join(map(str, codes.shape))})"] if codes else []
    if z.dtype.kind not in "iuf":
        raise UserError(f"{where}: expected real numbers; found {z.dtype}")
    as_z, as_codes = z.shape[1:] == latent, codes is not None and z.shape[1:] == codes.shape
    if not (as_z or as_codes):
        alone = "; one alone is array[None]" if z.shape in (latent, codes and codes.shape) else ""
        raise UserError(f"{where}: expected {' or '.join(shapes)}; found shape {z.shape}{alone}")
    if count := int((~np.isfinite(z)).sum()):
        raise UserError(f"{where}: expected finite numbers; found {count:,} of {z.size:,} that are NaN or infinite")
    least, most = float(z.min()), float(z.max())
    if as_z and as_codes:
        as_codes = name == "codes" or (z.dtype.kind in "iu" and name not in ("mu", "z"))
        if name not in ("codes", "mu", "z"):
            which = "codes, since they are whole numbers" if as_codes else "z, since they are no whole numbers by type"
            say(f"{where}: taken for {which}; z and codes of this model have one shape")
    if codes and as_codes:
        if z.dtype.kind == "f" and (z != np.round(z)).any():
            raise UserError(f"{where}: expected codes, whole numbers; found others, as {z[z != np.round(z)][0]:g}")
        if not 0 <= least <= most < codes.values:
            raise UserError(f"{where}: expected codes from 0 to {codes.values - 1}; found {least:.0f} to {most:.0f}")
        return z.astype(np.int32)
    largest = float(np.finfo(jax.dtypes.canonicalize_dtype(float)).max)
    if max(-least, most) > largest:
        raise UserError(f"{where}: expected numbers of at most {largest:.3g}; found {least:.3g} to {most:.3g}")
    return z if z.dtype.kind == "f" and z.itemsize <= 8 else z.astype(float)


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
