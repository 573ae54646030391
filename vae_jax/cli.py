"""The command line: the only place that parses arguments, prints and exits.

jax is imported only once a command has its arguments, so that help and refusals come at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vae_jax.config import Config, add_options, from_namespace, read
from vae_jax.errors import UserError
from vae_jax.folder import check_folder, check_writable, read_config, user_cache

if TYPE_CHECKING:
    from vae_jax.data import Dataset
    from vae_jax.evaluate import Model
    from vae_jax.train import Trained

COMPILED_LIMIT = 1 << 30  # bytes of compiled programs kept; the ones not used for longest go first
DATA_PATHS = ("manual_dir", "cache_dir", "path")


class Verb(NamedTuple):
    """A command.

    Attributes:
        summary: its line in the list of commands.
        options: adds its options to a parser.
        run: does it.
        epilog: more help, with examples.
    """

    summary: str
    options: Callable[[Any], None]
    run: Callable[[Any], None]
    epilog: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 2 for bad input, 130 where interrupted."""
    if arguments is None:
        arguments = sys.argv[1:]
        _keep_compiled()
    arguments = list(arguments)
    try:
        if arguments and arguments[0] in VERBS:
            verb = VERBS[arguments[0]]
            verb.run(_parse(arguments[0], verb, arguments[1:]))
        else:
            _overview(arguments)
    except UserError as error:
        print(f"vae-jax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = "; `vae-jax train … --resume` goes on from the last checkpoint" if arguments[:1] == ["train"] else ""
        print(f"vae-jax: interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `vae-jax … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError as error:
        print(f"vae-jax: error: not enough memory: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be read, …
        what = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        print(f"vae-jax: error: {what}", file=sys.stderr)
        return 2
    return 0


def _keep_compiled() -> None:
    """Has jax keep compiled programs in the user's cache folder, so that the next command starts in a few seconds.

    Before jax is imported, through its own environment variables; a cache the user has set is left as it is.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # a cache of the user's own has the user's own limits
        return
    try:
        folder = user_cache() / "compiled"
        check_writable(folder)
    except (UserError, OSError, RuntimeError):  # no home folder, say: nothing is lost but time
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(COMPILED_LIMIT))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")


def _overview(arguments: Sequence[str]) -> None:
    """Prints the list of commands, or refuses an unknown one."""
    from vae_jax import __version__
    from vae_jax.registry import lookup

    width = max(map(len, VERBS))
    commands = "\n".join(f"  {name:{width}}  {verb.summary}" for name, verb in VERBS.items())
    parser = argparse.ArgumentParser(
        "vae-jax",
        usage="vae-jax COMMAND … (vae-jax COMMAND --help tells its options)",
        description="Variational autoencoders in JAX: train one, look at it, use it.",
        epilog=f"commands:\n{commands}\n\n"
        "a first run, without any download:\n"
        "  vae-jax train --config digits --out runs/digits\n"
        "  vae-jax sample runs/digits -n 64\n\n"
        "the article's model on MNIST:\n"
        "  vae-jax train --config article --out runs/article [--data.manual_dir DIR]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vae_jax {__version__}")
    if not arguments:
        parser.print_help()
    elif arguments[0].startswith("-"):
        try:
            _, unknown = parser.parse_known_args(arguments)
        except argparse.ArgumentError as error:
            raise UserError(str(error)) from error
        raise UserError(f"expected a command ({', '.join(VERBS)}), found {unknown[0] if unknown else arguments[0]}")
    else:
        lookup(VERBS, arguments[0], "command")


def _parse(name: str, verb: Verb, arguments: Sequence[str]) -> Any:
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """jsonargparse's help, with the examples' lines kept."""

    parser = ArgumentParser(
        prog=f"vae-jax {name}",
        usage=f"vae-jax {name} {'--out RUN [--config FILE]' if name == 'train' else 'RUN'} [options]",
        description=verb.summary[0].upper() + verb.summary[1:] + ".",
        epilog=verb.epilog,
        formatter_class=Formatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    verb.options(parser)
    options = read(parser, arguments)
    if name == "train" and options.resume and not options.config and options.out:
        own = Path(options.out) / "config.yaml"
        if own.is_file():  # a run goes on as it began, without being told its configuration again
            options = read(parser, [*arguments, f"--config={own}"])
    return options


# --- What several commands share -------------------------------------------------------------------------------------


def _say(line: str) -> None:
    """Tells what goes on, apart from a command's result."""
    print(line, file=sys.stderr, flush=True)


def _run_options(parser: Any) -> None:
    parser.add_argument("run", metavar="RUN", type=str, help="a run folder, as `vae-jax train` leaves it")
    parser.add_argument("--checkpoint", type=str, default="latest", help="latest or best")
    for name in DATA_PATHS:
        parser.add_argument(f"--data.{name}", type=str, default=None, help=f"in place of the run's own data.{name}")
    _device_option(parser)


def _device_option(parser: Any) -> None:
    parser.add_argument("--device", type=str, default=None, help="cpu, gpu or tpu; by default the best one jax finds")


def _out_option(parser: Any, default: str) -> None:
    parser.add_argument("--out", type=str, default=None, metavar="FILE", help=f"what to write; default {default}")


def _set_device(name: str | None) -> str:
    """Makes jax use a device; returns its description.

    Raises:
        UserError: if there is none of this kind.
    """
    platforms = {None: None, "cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
    if name not in platforms:
        raise UserError(f"--device: expected cpu, gpu or tpu; found {name!r}")
    import jax

    try:
        if name is not None:
            jax.config.update("jax_platforms", platforms[name])
        device = jax.devices()[0]
    except RuntimeError as error:
        raise UserError(
            f"--device {name or ''}: jax finds no such device here ({str(error).splitlines()[0]}); the extras cuda "
            f"and tpu bring jax's support for them"
        ) from error
    from vae_jax.run import cores

    return f"{device.platform} ({device.device_kind}{f', {cores()} cores' if device.platform == 'cpu' else ''})"


def _open(options: Any) -> "tuple[Trained, Model]":
    """The model of the run named by a command's options."""
    from vae_jax.run import load, use

    if options.checkpoint not in ("latest", "best"):
        raise UserError(f"--checkpoint: expected latest or best; found {options.checkpoint!r}")
    read_config(Path(options.run))  # refuses what is no run before jax starts up
    _set_device(options.device)
    trained = load(options.run, options.checkpoint)
    return trained, use(trained)


def _data(options: Any, trained: "Trained") -> "Dataset":
    """The data of a run, from where the options say they lie now."""
    from vae_jax.data import load

    given = {name: getattr(options.data, name) for name in DATA_PATHS}
    config = replace(trained.config.data, **{name: path for name, path in given.items() if path is not None})
    return load(config, report=_say)


def _target(options: Any, default: str) -> Path:
    """The file a command writes.

    Raises:
        UserError: if there is no such run, or the file's folder cannot be written.
    """
    read_config(Path(options.run))  # a folder that is no run's stays as it is
    path = Path(options.out) if options.out else Path(options.run) / default
    if path.is_dir():
        raise UserError(f"--out {path}: expected a file, found a folder")
    check_writable(path.parent)
    return path


def _positive(value: int, option: str) -> int:
    if not 1 <= value <= 1_000_000:
        raise UserError(f"{option}: expected a number from 1 to 1,000,000; found {value}")
    return value


def _seed(options: Any) -> int:
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed: expected a number from 0 to {2**32 - 1}; found {options.seed}")
    return options.seed


# --- train -----------------------------------------------------------------------------------------------------------


def _train_options(parser: Any) -> None:
    parser.add_argument("--out", type=str, required=False, default=None, metavar="RUN", help="the run folder to make")
    parser.add_argument("--resume", action="store_true", help="continue the run in it, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="delete the run in it first, if there is one")
    _device_option(parser)
    add_options(parser)


def _train(options: Any) -> None:
    if options.out is None:
        raise UserError("--out: expected the run folder to make, found none; for example --out runs/first")
    folder = Path(options.out)
    check_folder(folder, options.resume, options.overwrite)
    config = from_namespace(options)
    # The run must find its data from anywhere.
    absolute = {
        name: str(Path(path).expanduser().absolute()) for name in DATA_PATHS if (path := getattr(config.data, name))
    }
    config = replace(config, data=replace(config.data, **absolute))

    device = _set_device(options.device)
    from vae_jax import data, models, run, train

    print(f"device: {device}", flush=True)
    images = data.load(config.data, report=_say)
    network, objective = train.build(config, images.image_shape)
    import jax

    shapes = jax.eval_shape(network.init, train.make_keys(config.seed).init)
    held_out = f", {len(images.validation):,} validation" if images.validation is not None else ""
    print(
        f"data: {images.name}, {len(images.train):,} training{held_out} and {len(images.test):,} test images of "
        f"{'x'.join(map(str, images.image_shape))}; model: {config.model.network}, "
        f"{models.count_parameters(shapes.params):,} parameters, {config.model.latent} latent dimensions",
        flush=True,
    )
    with _progress(config) as on_progress:
        trained = run.train(
            config,
            images,
            folder,
            resume=options.resume,
            overwrite=options.overwrite,
            report=print,
            on_progress=on_progress,
            on_epoch=lambda figures, state: print(_epoch_line(figures, config, objective.unit), flush=True),
        )
    print(f"test loss {trained.history[-1]['test_loss']:.2f} {objective.unit} after {len(trained.history)} epochs")
    print(f"run folder: {folder}")
    for path in sorted((folder / "figures").glob("*.png")):
        print(f"  picture: {path}")


def _epoch_line(figures: dict[str, Any], config: Config, unit: str) -> str:
    def split(name: str) -> str:
        loss, reconstruction, kl = (figures[f"{name}_{part}"] for part in ("loss", "reconstruction", "kl"))
        parts = f" (reconstruction {reconstruction:.2f}, KL {kl:.2f})" if kl else ""
        return f"{name} {loss:.2f}{parts}"

    names = [name for name in ("train", "validation", "test") if f"{name}_loss" in figures]
    return (
        f"epoch {figures['epoch']:{len(str(config.train.epochs))}}/{config.train.epochs}: "
        f"{', '.join(map(split, names))} {unit}; the article's sums per batch: train "
        f"{figures['article_train_loss']:.2f}, test {figures['article_test_loss']:.2f}; "
        f"{figures['images_per_second']:,.0f} images/s"
    )


@contextmanager
def _progress(config: Config) -> Iterator[Callable[..., None] | None]:
    """A live bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("epoch {task.fields[epoch]}/" + str(config.train.epochs)),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    # Standard output passes through the bar's console only where both are the same terminal.
    bar = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
    task = bar.add_task("", total=None, epoch=1, figures="compiling …")

    def show(progress: Any) -> None:
        bar.update(
            task,
            total=config.train.epochs * progress.steps,
            completed=(progress.epoch - 1) * progress.steps + progress.step,
            epoch=progress.epoch,
            figures=f"loss {progress.loss:.2f}  {progress.images_per_second:,.0f} images/s",
        )

    with bar:
        yield show


# --- After training --------------------------------------------------------------------------------------------------


def _evaluate_options(parser: Any) -> None:
    _run_options(parser)
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
    trained, _ = _open(options)
    from vae_jax import train
    from vae_jax.evaluate import make_evaluator, means

    network, objective = train.build(trained.config, trained.image_shape)
    images = _split(_data(options, trained), options.split).images
    evaluate = make_evaluator(trained.config, network, objective, images, options.latent)
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
    _run_options(parser)
    parser.add_argument("images", metavar="IMAGES", type=str, nargs="*", help="image files; without any, test images")
    parser.add_argument("-n", type=int, default=64, help="how many test images")
    _out_option(parser, "RUN/figures/reconstructions.png")


def _reconstruct(options: Any) -> None:
    import numpy as np

    path = _target(options, "figures/reconstructions.png")
    count = _positive(options.n, "-n")
    trained, model = _open(options)
    from vae_jax import figures
    from vae_jax.data import read_images

    if options.images:
        images = read_images(options.images, trained.config.data)
    else:
        images = _data(options, trained).test.images[:count]
    print(figures.pairs(path, images / 255, np.asarray(model.reconstruct(images))))


def _sample_options(parser: Any) -> None:
    _run_options(parser)
    parser.add_argument("-n", type=int, default=64, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same pictures")
    _out_option(parser, "RUN/figures/samples_seed<SEED>.png; a name ending in .npz gets the array `images` instead")


def _sample(options: Any) -> None:
    import numpy as np

    path = _target(options, f"figures/samples_seed{options.seed}.png")
    count, seed = _positive(options.n, "-n"), _seed(options)
    trained, model = _open(options)
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
    _run_options(parser)
    parser.add_argument("--split", type=str, default="test", help="the images: test, validation or train")
    _out_option(parser, "RUN/latents_<SPLIT>.npz")


def _encode(options: Any) -> None:
    import numpy as np

    path = _target(options, f"latents_{options.split}.npz")
    trained, model = _open(options)
    split = _split(_data(options, trained), options.split)
    arrays = {name: np.asarray(head) for name, head in model.encode(split.images).items()}
    if split.labels is not None:
        arrays["labels"] = split.labels
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # np.savez would add .npz to a name without it
        np.savez(file, allow_pickle=False, **arrays)
    print(f"{path}: {', '.join(f'{name} {array.shape}' for name, array in arrays.items())}")


def _interpolate_options(parser: Any) -> None:
    _run_options(parser)
    parser.add_argument("-n", type=int, default=8, help="rows, each from one test image to another")
    parser.add_argument("--steps", type=int, default=12, help="pictures in a row")
    parser.add_argument("--seed", type=int, default=0, help="chooses the test images")
    _out_option(parser, "RUN/figures/interpolation.png")


def _interpolate(options: Any) -> None:
    import numpy as np

    path = _target(options, "figures/interpolation.png")
    rows, steps, seed = _positive(options.n, "-n"), _positive(options.steps, "--steps"), _seed(options)
    trained, model = _open(options)
    from vae_jax import figures

    images = _data(options, trained).test.images
    chosen = np.random.RandomState(seed).choice(len(images), 2 * rows, replace=2 * rows > len(images))
    ends = np.asarray(model.encode(images[chosen])["mu"]).reshape(2, rows, 1, -1)
    weights = np.linspace(0, 1, steps)[None, :, None]
    z = (1 - weights) * ends[0] + weights * ends[1]
    pictures = np.asarray(model.decode(z.reshape(rows * steps, -1)))
    print(figures.grid(path, pictures, columns=steps))


def _traverse_options(parser: Any) -> None:
    _run_options(parser)
    parser.add_argument("--image", type=int, default=0, help="number of the test image to start from")
    parser.add_argument("--steps", type=int, default=11, help="pictures in a row")
    parser.add_argument("--extent", type=float, default=3.0, help="each dimension runs from -EXTENT to EXTENT")
    _out_option(parser, "RUN/figures/traversal.png")


def _traverse(options: Any) -> None:
    import numpy as np

    path = _target(options, "figures/traversal.png")
    steps = _positive(options.steps, "--steps")
    if not 0 < options.extent <= 1000:
        raise UserError(f"--extent: expected a number in (0, 1000]; found {options.extent}")
    trained, model = _open(options)
    from vae_jax import figures

    images = _data(options, trained).test.images
    if not 0 <= options.image < len(images):
        raise UserError(f"--image: expected a number from 0 to {len(images) - 1}; found {options.image}")
    z = np.asarray(model.encode(images[options.image : options.image + 1])["mu"])
    z = z.repeat(model.latent * steps, 0).reshape(model.latent, steps, model.latent)
    for dimension in range(model.latent):
        z[dimension, :, dimension] = np.linspace(-options.extent, options.extent, steps)
    pictures = np.asarray(model.decode(z.reshape(-1, model.latent)))
    print(figures.grid(path, pictures, columns=steps))


VERBS = {
    "train": Verb(
        "train a model into a run folder",
        _train_options,
        _train,
        "examples:\n"
        "  vae-jax train --config digits --out runs/digits                      no download\n"
        "  vae-jax train --config article --out runs/article --seed 1           MNIST, downloaded\n"
        "  vae-jax train --config article --out runs/z2 --model.latent 2        another latent size\n"
        "  vae-jax train --config digits --out runs/mine --data.source folder --data.path photos --data.channels 3",
    ),
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
