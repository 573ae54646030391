"""`vae-jax export` and `vae-jax import`: models for other tools, and weights from PyTorch."""

import shlex
from collections.abc import Iterable
from typing import Any

from vae_jax.cli.arguments import add_options
from vae_jax.cli.common import (
    Verb,
    absolute_paths,
    answer,
    check_checkpoint,
    check_code,
    checkpoint_option,
    run_argument,
    say,
    set_device,
    trust_option,
)
from vae_jax.config import DataConfig, expand
from vae_jax.errors import UserError
from vae_jax.files.folders import check_writable
from vae_jax.files.held import check_no_link
from vae_jax.runs.folder import check_folder, pictures
from vae_jax.runs.hub import is_address


def _formats() -> Iterable[str]:
    from vae_jax.interop.export import FORMATS

    return FORMATS


def _export_options(parser: Any) -> None:
    run_argument(parser)
    parser.add_argument("file", metavar="FILE", help="the file to write: .safetensors, .zip or .onnx; a card, .md, too")
    parser.add_argument(
        "--to",
        default="torch",
        offered=_formats,
        help="torch (weights, .safetensors, and the classes that load them, .py), stablehlo (encoder and decoder for "
        "jax.export, .zip) or onnx (for onnxruntime, .onnx)",
    )
    checkpoint_option(parser)
    parser.add_argument("--licence", default=None, metavar="NAME", help="of the weights, for the card: apache-2.0, …")
    parser.add_argument("--overwrite", action="store_true", help="write over FILE, and what goes with it, if it exists")
    trust_option(parser)


def _export(options: Any) -> None:
    check_checkpoint(options)
    path, folder = expand(options.file), expand(options.run)
    check_code(options, folder)
    set_device("cpu")
    from vae_jax.interop.export import check_licence, check_target, export, written_by

    if is_address(options.file):
        raise UserError(f"FILE: expected a file; found an address, {options.file}: `vae-jax push` brings a run there")
    check_target(path, options.to)
    check_licence(options.licence)
    if folders := [target for target in written_by(path, options.to) if target.is_dir()]:
        raise UserError(f"{folders[0]}: expected a file, found a folder")
    if not options.overwrite and (there := [target for target in written_by(path, options.to) if target.exists()]):
        raise UserError(f"{there[0]}: there is such a file already; --overwrite writes over it")
    check_no_link(folder, path.parent)
    check_writable(path.parent)
    exported = export(folder, path, options.to, options.checkpoint, options.licence, say, options.trust_code)
    for line in exported.about:
        answer(f"  {line}")
    for written in exported.files:
        answer(str(written))


def _import_options(parser: Any) -> None:
    parser.add_argument("file", metavar="FILE", help="a .safetensors file, or a state_dict in a .pt file")
    parser.add_argument("run", metavar="RUN", help="the run folder to make")
    parser.add_argument("--overwrite", action="store_true", help="delete the run in it first, if there is one")
    add_options(parser)


def _import(options: Any) -> None:
    path, folder = expand(options.file), expand(options.run)
    check_folder(folder, False, options.overwrite)
    config = absolute_paths(options.configuration)
    set_device("cpu")
    from vae_jax.interop.exchange import import_run
    from vae_jax.networks import count_parameters

    trained = import_run(path, config, folder, options.overwrite, say)
    if not options.config and config.data.source == DataConfig.source:
        say(
            f"no --config says which data the weights were trained on: {folder} assumes data.source "
            f"{config.data.source}, and is evaluated and trained on with it"
        )
    quoted = shlex.quote(str(folder))
    for line in (
        f"{path}: {count_parameters(trained.state.variables.params):,} parameters",
        f"run folder: {folder} (PyTorch's weights hold no optimiser state: training goes on with a fresh one)",
        *(f"  picture: {picture}" for picture in pictures(folder)),
        f"  evaluate it: vae-jax evaluate {quoted}; train on: vae-jax train --out {quoted} --resume "
        f"--train.epochs {config.train.epochs}",
    ):
        answer(line)


VERBS = {
    "export": Verb(
        "write a run's model for PyTorch, StableHLO or ONNX, with a model card",
        _export_options,
        _export,
        "examples:\n"
        "  vae-jax export runs/digits --to torch model.safetensors\n"
        "  vae-jax export runs/digits --to stablehlo model.zip\n"
        "  vae-jax export runs/digits --to onnx model.onnx --licence apache-2.0",
        usage="RUN FILE",
    ),
    "import": Verb(
        "make a run from PyTorch's weights",
        _import_options,
        _import,
        "examples:\n"
        "  vae-jax import model.safetensors --config article runs/imported\n"
        "  vae-jax import model.pt --config article runs/imported --train.learning_rate 1e-4",
        usage="FILE [--config FILE] RUN",
    ),
}
