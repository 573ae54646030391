"""Downloads through tensorflow-datasets, with limits.

tensorflow-datasets checks sizes and checksums, but it sets no timeout and retries for minutes without a network. So an
address is tried first, and every request of a download has a limit.
"""

import os
import queue
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vae_jax.errors import UserError, on_terminal

ANSWER_LIMIT = 5.0  # seconds for an address to answer, name look-up included
STALL_LIMIT = 15.0  # seconds that a download may stall


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web with a known checksum."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.url.rsplit("/", 1)[-1]


def unreachable(url: str) -> str | None:
    """The reason why an address does not answer within ANSWER_LIMIT; None if it answers, even with an error.

    Uses requests, as tensorflow-datasets does, so that the same proxies and certificates hold; in a thread, because
    nothing else limits the look-up of a name.
    """
    import requests

    answer: queue.Queue[str | None] = queue.Queue()

    def ask() -> None:
        try:
            requests.get(url, stream=True, timeout=ANSWER_LIMIT).close()
            answer.put(None)
        except Exception as error:
            answer.put(type(error).__name__)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.get(timeout=ANSWER_LIMIT)
    except queue.Empty:
        return f"no answer within {ANSWER_LIMIT:g} s"


@contextmanager
def limited_requests() -> Iterator[None]:
    """A context in which all requests have a timeout and are tried at most twice."""
    import requests

    unlimited = requests.Session.request

    def request(self, method, url, **options):
        options["timeout"] = options.get("timeout") or (ANSWER_LIMIT, STALL_LIMIT)
        for adapter in self.adapters.values():
            adapter.max_retries = adapter.max_retries.new(total=1)
        return unlimited(self, method, url, **options)

    requests.Session.request = request  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        requests.Session.request = unlimited


def download(files: Iterable[RemoteFile], folder: Path) -> None:
    """Downloads files into an existing folder; a file appears there whole and verified, or not at all.

    Raises:
        UserError: if a file cannot be downloaded, or does not have the expected content.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.core.utils import Size

    if not on_terminal(sys.stderr):
        tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as new, limited_requests():
        for file in files:
            if reason := unreachable(file.url):
                raise UserError(f"{file.url} cannot be reached ({reason})")
            infos = {file.url: UrlInfo(size=Size(file.size), checksum=file.sha256, filename=file.name)}
            manager = tfds.download.DownloadManager(download_dir=new, url_infos=infos, force_checksums_validation=True)
            try:
                path = manager.download(file.url)  # one at a time: nothing goes on in the background after an error
            except Exception as error:  # of requests, urllib3, tfds and the file system
                raise UserError(f"{file.url} was not downloaded: {_reason(error)}") from error
            os.replace(path, folder / file.name)


def _reason(error: Exception) -> str:
    """An exception's message as part of a line."""
    return " ".join(str(error).split()).split(" To debug")[0] or type(error).__name__
