"""A server in the place of the Hugging Face Hub's, as far as a run needs one: its repositories lie in a folder.

ROOT/OWNER/NAME/COMMIT/… has the files of each commit, and `Server.heads` the newest. Its answers are those that the
version of huggingface_hub in constraints.txt asks for; files above `LFS` bytes go through git's large file storage.
"""

import base64
import hashlib
import json
import re
import shutil
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

OWNER, TOKEN = "me", "hf_good"
LFS = 10_000  # bytes of a file


class Refusal(Exception):
    """A status other than 200, the code of the error as the hub names it, and more of the answer."""

    def __init__(self, status: int, message: str, code: str = "", **more: str):
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


class Server(ThreadingHTTPServer):
    """Has the repositories' newest commits, which of them are private, and the paths that were asked for."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.root, self.url = root, f"http://127.0.0.1:{self.server_port}"
        self.heads: dict[str, str] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []

    def folder(self, name: str, revision: str = "main") -> Path:
        """Of a repository's files at a commit."""
        if name not in self.heads:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        folder = self.root / name / (self.heads[name] if revision == "main" else revision)
        if not folder.is_dir():
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return folder

    def commit(self, name: str, lines: list[dict[str, Any]]) -> str:
        """Makes a commit of the newest one and of the lines of a request."""
        before = self.folder(name)
        content = json.dumps([self.heads[name], lines]).encode()
        commit = hashlib.sha1(content).hexdigest()
        after = self.root / name / commit
        shutil.copytree(before, after)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                if value.get("parentCommit", self.heads[name]) != self.heads[name]:
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
                continue
            path = after / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                path.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                shutil.copyfile(self.root / "lfs" / value["oid"], path)
            else:
                path.unlink()
        self.heads[name] = commit
        return commit


class Answer(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(path := unquote(urlsplit(self.path).path))
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers: dict[str, str] = {}
        try:
            status, answer = 200, self._answer(path, body, headers)
        except Refusal as refusal:
            status, answer = refusal.status, {"error": str(refusal), **refusal.more}
            headers = {"x-error-message": str(refusal), "x-error-code": refusal.code}
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self, path: str, body: bytes, headers: dict[str, str]) -> Any:
        for pattern, name in ROUTES.items():
            if match := re.fullmatch(pattern, path):
                return getattr(self, f"_{name}")(body, headers, *match.groups())
        raise Refusal(404, f"no such page: {path}")

    def _user(self) -> str:
        """Who asks; empty for nobody."""
        given = self.headers.get("authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            raise Refusal(401, "Invalid credentials in Authorization header")
        return OWNER if given else ""

    def _readable(self, name: str) -> None:
        if self._user() != OWNER and (name in self.server.private or name not in self.server.heads):
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")

    def _create(self, body: bytes, headers: dict[str, str]) -> Any:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if self._user() != asked["organization"]:
            raise Refusal(403, f"You don't have the rights to create a model under {asked['organization']}")
        if name in self.server.heads:
            raise Refusal(409, "You already created this model repo", url=f"{self.server.url}/{name}")
        self.server.heads[name] = "0" * 40
        (self.server.root / name / self.server.heads[name]).mkdir(parents=True)
        (self.server.folder(name) / ".gitattributes").write_text("*.bin filter=lfs\n")
        if asked.get("visibility") == "private":
            self.server.private.add(name)
        return {"url": f"{self.server.url}/{name}"}

    def _card(self, body: bytes, headers: dict[str, str]) -> Any:
        assert json.loads(body)["content"].startswith("---\n")
        return {"errors": [], "warnings": []}

    def _info(self, body: bytes, headers: dict[str, str], name: str, revision: str | None) -> Any:
        self._readable(name)
        folder = self.server.folder(name, revision or "main")
        files = [{"rfilename": path.relative_to(folder).as_posix()} for path in files_in(folder)]
        return {"id": name, "sha": folder.name, "private": name in self.server.private, "siblings": files}

    def _tree(self, body: bytes, headers: dict[str, str], name: str, revision: str) -> Any:
        self._readable(name)
        folder, files = self.server.folder(name, revision), []
        for path in files_in(folder):
            content = path.read_bytes()
            file = {"type": "file", "path": path.relative_to(folder).as_posix(), "size": len(content)}
            file["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if len(content) > LFS:
                file["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            files.append(file)
        return files

    def _file(self, body: bytes, headers: dict[str, str], name: str, revision: str, path: str) -> bytes:
        self._readable(name)
        folder = self.server.folder(name, revision)
        if not (folder / path).is_file():
            raise Refusal(404, "Entry not found", "EntryNotFound")
        content = (folder / path).read_bytes()
        headers |= {"x-repo-commit": folder.name, "etag": f'"{hashlib.sha256(content).hexdigest()}"'}
        return content

    def _preupload(self, body: bytes, headers: dict[str, str], name: str, revision: str) -> Any:
        files = json.loads(body)["files"]
        modes = {file["path"]: "lfs" if file["size"] > LFS else "regular" for file in files}
        return {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}

    def _batch(self, body: bytes, headers: dict[str, str], name: str) -> Any:
        objects = json.loads(body)["objects"]
        to = f"{self.server.url}/lfs"
        return {"objects": [{**each, "actions": {"upload": {"href": f"{to}/{each['oid']}"}}} for each in objects]}

    def _large(self, body: bytes, headers: dict[str, str], oid: str) -> Any:
        assert hashlib.sha256(body).hexdigest() == oid
        (self.server.root / "lfs").mkdir(exist_ok=True)
        (self.server.root / "lfs" / oid).write_bytes(body)
        return {}

    def _commit(self, body: bytes, headers: dict[str, str], name: str, revision: str) -> Any:
        if self._user() != name.split("/")[0]:
            raise Refusal(403, "Forbidden")
        commit = self.server.commit(name, [json.loads(line) for line in body.splitlines()])
        return {"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit}

    def log_message(self, *_: Any) -> None:
        pass


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = {
    "/api/repos/create": "create",
    "/api/validate-yaml": "card",
    rf"/api/models/{NAME}(?:/revision/([^/]+))?": "info",
    rf"/api/models/{NAME}/tree/([^/]+)": "tree",
    rf"/api/models/{NAME}/preupload/([^/]+)": "preupload",
    rf"/api/models/{NAME}/commit/([^/]+)": "commit",
    rf"/{NAME}\.git/info/lfs/objects/batch": "batch",
    r"/lfs/([0-9a-f]{64})": "large",
    rf"/{NAME}/resolve/([^/]+)/(.+)": "file",
}


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    """A context with the server, which the library of this process asks, as its owner, with a cache beside the root."""
    constants = pytest.importorskip("huggingface_hub.constants")
    root.mkdir()
    with Server(root) as server, pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)  # of its client for HTTP, to the library
        patch.setattr(constants, "ENDPOINT", server.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(root.parent / "cache"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(root.parent / "token"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another protocol, with a server of its own
        patch.setenv("HF_TOKEN", TOKEN)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
