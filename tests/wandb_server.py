"""A server in the place of W&B's, as far as a run needs one: it keeps every run's rows as W&B's process sends them.

Its answers are those that the version of wandb in constraints.txt asks for.
"""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "p", "name": "vae_jax", "entity": {"id": "e", "name": "me"}}
VIEWER = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}


class Server(ThreadingHTTPServer):
    """Has the runs' rows by the runs' ids, and the names of the files that were sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.files: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            answer = {"data": self._data(asked.get("operationName"), asked.get("variables", {}))}
        elif self.path.endswith("/file_stream"):
            rows = self.server.rows.setdefault(self.path.split("/")[-2], [])
            history = (json.loads(body).get("files") or {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            rows[history["offset"] :] = [json.loads(line) for line in history["content"]] or rows[history["offset"] :]
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST

    def _data(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        run = given.get("name") or given.get("run")
        if name == "Viewer":
            return {"viewer": VIEWER}
        if name == "CreateRunFiles":
            self.server.files += given["files"]
            files = [{"name": file, "uploadUrl": f"{self.server.url}/files"} for file in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        rows = self.server.rows.get(run or "", [])
        bucket = {
            "id": "b",
            "name": run,
            "displayName": run,
            "config": "{}",
            "wandbConfig": '{"t": 1}',
            "summaryMetrics": "{}",
            "tags": [],
            "logLineCount": 0,
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "historyLineCount": len(rows),
            "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
            "historyKeys": {},
            "project": PROJECT,
        }
        if name == "RunResumeStatus":
            return {"model": {**PROJECT, "bucket": bucket if run in self.server.rows else None}}
        if name == "UpsertBucket":
            self.server.rows.setdefault(str(run), [])
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        return {}

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """A context with the server."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
