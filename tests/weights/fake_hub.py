"""A server that answers what huggingface_hub asks when it downloads a snapshot, from a dict of files.

GET  /api/models/ORG/NAME[/revision/REV]        what the repository is, its files, its commit
GET  /api/models/ORG/NAME/tree/REV              its files with sizes and hashes
HEAD, GET  [/datasets]/ORG/NAME/resolve/REV/FILE    a file, with Range
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    files: dict[str, bytes]
    gated: bool = False
    forbidden: bool = False
    revisions: tuple[str, ...] = ("main", "v1")
    cut: dict[str, int] = field(default_factory=dict)  # file: bytes after which the first transfer breaks off
    short: tuple[str, ...] = ()  # files that always come with half their bytes

    @property
    def commit(self) -> str:
        return hashlib.sha1(b"".join(self.files[name] for name in sorted(self.files))).hexdigest()


class FakeHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, repos: dict[str, Repo]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = repos
        self.requests: list[str] = []  # "METHOD path", in order

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> set[str]:
        """Names of the files whose content was asked for."""
        return {r.rpartition("/")[2] for r in self.requests if r.startswith("GET ") and "/resolve/" in r}


@contextmanager
def fake_hub(repos: dict[str, Repo]) -> Iterator[FakeHub]:
    hub = FakeHub(repos)
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.requests.append(f"{self.command} /{path}")
        parts = path.removeprefix("api/models/").removeprefix("datasets/").split("/")
        repo = self.server.repos.get("/".join(parts[:2]))
        if repo is None:
            self._refuse(401, "RepoNotFound")
        elif path.startswith("api/models/"):
            self._describe(repo, "/".join(parts[:2]), parts[2:])
        elif repo.gated:
            self._refuse(403, "GatedRepo")
        elif repo.forbidden:
            self._refuse(403, "")
        elif parts[2] != "resolve" or parts[3] not in (*repo.revisions, repo.commit):
            self._refuse(404, "RevisionNotFound")
        elif "/".join(parts[4:]) not in repo.files:
            self._refuse(404, "EntryNotFound")
        else:
            self._file(repo, "/".join(parts[4:]))

    def _describe(self, repo: Repo, name: str, rest: list[str]) -> None:
        if rest and rest[1] not in (*repo.revisions, repo.commit):
            return self._refuse(404, "RevisionNotFound")
        if rest and rest[0] == "tree":
            return self._json(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in repo.files.items()
                ]
            )
        siblings = [{"rfilename": path} for path in repo.files]
        return self._json({"id": name, "modelId": name, "sha": repo.commit, "siblings": siblings, "tags": []})

    def _file(self, repo: Repo, path: str) -> None:
        content = repo.files[path]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        start = 0
        if self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", repo.commit)
        self.send_header("ETag", etag)
        self.send_header("Accept-Ranges", "bytes")
        body = content[start:]
        if path in repo.short and self.command == "GET":
            body = body[: len(body) // 2]
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = repo.cut.pop(path, None)
        if cut is not None:
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body)

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
