"""Small files and a small web server for the tests of the data package."""

import gzip
import hashlib
import io
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from vae_jax.data.download import RemoteFile
from vae_jax.data.idx import NAMES, Idx


def idx(array: np.ndarray) -> bytes:
    """A uint8 array as a gzipped IDX file."""
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


def idx_files(train: int = 20, test: int = 6, seed: int = 0) -> dict[str, bytes]:
    """The four files of a small data set in MNIST's format."""
    random = np.random.RandomState(seed)
    arrays = [
        random.randint(0, 256, shape).astype(np.uint8) if len(shape) == 3 else np.arange(shape[0], dtype=np.uint8) % 10
        for count in (train, test)
        for shape in ((count, 28, 28), (count,))
    ]
    return dict(zip(NAMES, map(idx, arrays), strict=True))


def remote(files: dict[str, bytes], base: str) -> tuple[RemoteFile, ...]:
    """How files are registered that lie under an address."""
    return tuple(
        RemoteFile(f"{base}/{name}", len(content), hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    )


def source(files: Callable[[], Sequence[RemoteFile]]) -> Idx:
    """A source like MNIST with other files."""
    return Idx("tiny", files, tuple("0123456789"))


def write(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def png(image: np.ndarray | Image.Image, path: Path, **options) -> Path:
    """Writes an image in the format of the path's extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def png_bytes(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG's chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, kind: int, pixels: bytes, *chunks: bytes) -> bytes:
    """A PNG of any bit depth and colour type; `pixels` are its lines, each after a filter byte."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    image = chunk(b"IDAT", zlib.compress(pixels) if pixels else b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + image + chunk(b"IEND", b"")


@dataclass
class Server:
    """A web server on the loopback interface.

    Attributes:
        files: by name; `broken` may say otherwise.
        broken: a name's HTTP status, or "silent" (takes the request, never answers) or "stalls" (sends half).
        from_request: the number of a file's request from which on it is broken.
        requests: the names asked for, in order.
    """

    url: str
    files: dict[str, bytes]
    broken: dict[str, int | str] = field(default_factory=dict)
    from_request: int = 1
    requests: list[str] = field(default_factory=list)


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Server]:
    """Serves files until the block ends."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path[1:]
            server.requests.append(name)
            broken = server.broken.get(name) if server.requests.count(name) >= server.from_request else None
            content = server.files.get(name)
            if broken == "silent":
                ended.wait(30)
                return
            if isinstance(broken, int) or content is None:
                self.send_error(broken if isinstance(broken, int) else 404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            try:
                self.wfile.write(content[: len(content) // 2] if broken == "stalls" else content)
            except ConnectionError:  # a probe does not wait for the content
                return
            if broken == "stalls":
                ended.wait(30)

        def log_message(self, *args) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_port}", files)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        ended.set()
        http.shutdown()
        thread.join()
        http.server_close()
