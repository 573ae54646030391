"""TensorBoard's event files in RUN/logs/tensorboard, one a training: written at once, without threads.

They are written with TensorBoard's own package and not with tensorboardX, which imports torch wherever that is
installed. A file that a later training of the same run adds begins with a mark: what earlier ones hold from this epoch
on does not count, for TensorBoard and for us.
"""

import socket
import struct
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from vae_jax.files.checked import open_file
from vae_jax.loggers.base import LoggedRun, Logger, check_no_links, make_own_folder, table

RECORD_LIMIT = 1 << 28  # bytes of an event
# As TensorBoard's page of texts names them. The units stand beside the figures too, where its server shows that.
CONFIG, UNITS, SUMMARY = (f"{name}/text_summary" for name in ("config", "units", "summary"))
MODULES = ("event", "summary", "tensor", "tensor_shape")
LAST = "chunk_steps"  # the figure that is written last: where it is, all are


class Parts(NamedTuple):
    """TensorBoard's classes that an event is made of, by their own names."""

    Event: Any
    SessionLog: Any
    Summary: Any
    SummaryMetadata: Any
    TensorProto: Any
    TensorShapeProto: Any


def _parts() -> Parts:
    modules = [import_module(f"tensorboard.compat.proto.{name}_pb2") for name in MODULES]
    classes = {name: value for module in modules for name, value in vars(module).items() if name in Parts._fields}
    return Parts(**classes)


def start(run: LoggedRun) -> Logger:
    """Begins a run's event files, or goes on with them.

    Raises:
        UserError: if there is a link among them.
        OSError: if they cannot be read or written.
    """
    parts = _parts()
    record_writer = import_module("tensorboard.summary.writer.record_writer")
    folder = make_own_folder(run.folder, "tensorboard")
    check_no_links(folder)
    files = sorted(folder.glob("*.tfevents.*"))
    tags, later = _held(files, run.epochs)
    # TensorBoard reads the files in the order of their names: by number, whatever the clocks say.
    name = f"events.{_number(files) + 1:06d}.out.tfevents.{int(time.time())}.{socket.gethostname()}"
    writer = record_writer.RecordWriter((folder / name).open("xb"))

    def write(**content: Any) -> None:
        writer.write(parts.Event(wall_time=time.time(), **content).SerializeToString())

    def values(step: int, *values: Any) -> None:
        write(step=step, summary=parts.Summary(value=values))

    def text(tag: str, step: int, content: Mapping[str, Any]) -> None:
        plugin = parts.SummaryMetadata.PluginData(plugin_name="text")
        shape = parts.TensorShapeProto(dim=[parts.TensorShapeProto.Dim(size=1)])
        tensor = parts.TensorProto(dtype="DT_STRING", string_val=[table(content).encode()], tensor_shape=shape)
        metadata = parts.SummaryMetadata(plugin_data=plugin, summary_description=f"of {run.name}")
        values(step, parts.Summary.Value(tag=tag, metadata=metadata, tensor=tensor))

    def epoch(figures: dict[str, Any]) -> None:
        if (UNITS, 0) not in tags:
            text(UNITS, 0, {name: unit for name in figures if (unit := run.unit_of(name))})
            tags.add((UNITS, 0))
        order = sorted(figures, key=lambda name: name == LAST)
        scalars = [
            parts.Summary.Value(
                tag=name,
                simple_value=figures[name],
                metadata=parts.SummaryMetadata(
                    plugin_data=parts.SummaryMetadata.PluginData(plugin_name="scalars"),
                    summary_description=run.unit_of(name),
                ),
            )
            for name in order
            if name != "epoch" and (name, figures["epoch"]) not in tags  # of an epoch that was written in half
        ]
        for scalar in scalars:
            values(figures["epoch"], scalar)
        writer.flush()

    def picture(name: str, path: Path, epoch: int) -> None:
        if (name, epoch) in tags:
            return
        content = path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])  # of a PNG file
        image = parts.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        values(epoch, parts.Summary.Value(tag=name, image=image))

    def end(summary: dict[str, Any] | None) -> None:
        if summary is not None:
            text(SUMMARY, summary["epochs"], summary)
        writer.flush()
        writer.close()

    write(file_version="brain.Event:2")
    if later:
        write(step=run.epochs + 1, session_log=parts.SessionLog(status=parts.SessionLog.START))
    if (CONFIG, 0) not in tags:
        text(CONFIG, 0, run.config)
    writer.flush()
    held = frozenset(step for tag, step in tags if tag == LAST)
    ended = max((step for tag, step in tags if tag == SUMMARY), default=0)
    return Logger(epoch, picture, end, held, ended, str(folder))


def _number(files: list[Path]) -> int:
    numbers = [int(number) for file in files if (number := file.name.split(".")[1]).isascii() and number.isdigit()]
    return max(numbers, default=0)


def _held(files: list[Path], epochs: int) -> tuple[set[tuple[str, int]], bool]:
    """Tags and steps in event files up to an epoch, and whether there are later steps."""
    parts = _parts()
    tags: set[tuple[str, int]] = set()
    for file in files:
        for record in _records(file):
            event = parts.Event.FromString(record)
            if event.HasField("session_log") and event.session_log.status == parts.SessionLog.START:
                tags = {(tag, step) for tag, step in tags if step < event.step}
            tags |= {(value.tag, event.step) for value in event.summary.value}
    kept = {(tag, step) for tag, step in tags if step <= epochs}
    return kept, len(kept) < len(tags)


def _records(path: Path) -> Iterator[bytes]:
    """The records of an event file, up to one that is cut off or damaged, where TensorBoard stops as well."""
    masked_crc32c = import_module("tensorboard.compat.tensorflow_stub.pywrap_tensorflow").masked_crc32c
    with open(path, "rb", opener=open_file) as file:
        while len(header := file.read(12)) == 12:
            length, check = struct.unpack("<QI", header)
            if masked_crc32c(header[:8]) != check or length > RECORD_LIMIT:
                return
            content, end = file.read(length), file.read(4)
            if len(end) < 4 or masked_crc32c(content) != struct.unpack("<I", end)[0]:
                return
            yield content
