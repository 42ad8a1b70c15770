"""A small Hugging Face Hub in this process: the part of its HTTP interface that downloads need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")


@dataclass
class Repository:
    """One model repository.

    Attributes:
        files: content of each file, by commit.
        refs: commit of each branch and tag.
        token: asked for with every request; "" if the repository is public.
        gated: its files, but not its list of files, are refused.
    """

    files: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    token: str = ""
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.files else None)


@dataclass
class Hub:
    """What the server has, what it was asked for, and how it misbehaves.

    Attributes:
        repositories: by id.
        requests: "METHOD path" of each, in order.
        ranges: Range headers that came with requests for weights.
        sent: bytes of weight files that were sent.
        cut: connections to break off in the middle of the next weight files.
        whole: take no heed of ranges.
        down: answer everything with an internal error.
        busy: requests for parts of weights to answer with that they come too often.
        tokens: Authorization headers that came with requests to another host than the hub's.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    sent: int = 0
    tokens: list[str] = field(default_factory=list)
    cut: int = 0
    whole: bool = False
    down: bool = False
    busy: int = 0
    url: str = ""

    def fetched(self) -> set[str]:
        """Names of the files whose content was asked for, other than by HEAD."""
        asked = [r.removeprefix("GET ") for r in self.requests if r.startswith("GET ")]
        return {path.partition("/resolve/")[2].partition("/")[2] for path in asked if "/resolve/" in path} | {
            path.rpartition("/cdn/")[2].partition("/")[2] for path in asked if path.startswith("/cdn/")
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.down:
            return self._send(500, b"")
        parts = path.strip("/").split("/")
        if parts[0] == "cdn":
            repository = self.hub.repositories["/".join(parts[2:4])]
            return self._content(repository.files[parts[1]]["/".join(parts[4:])])
        api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
        repository = self.hub.repositories.get(name)
        if repository is None or f"Bearer {repository.token}" not in (
            "Bearer ",
            self.headers["authorization"],
        ):
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        kind, revision = (rest[0], "main" if len(rest) < 2 else rest[1]) if rest else ("revision", "main")
        commit = repository.commit("/".join(rest[1:]) if kind in ("revision", "tree") and rest else revision)
        if commit is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = repository.files[commit]
        if kind == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self._json({"id": name, "modelId": name, "sha": commit, "siblings": siblings})
        if kind == "tree":
            return self._json([_entry(file, content) for file, content in files.items()])
        return self._resolve(repository, name, commit, "/".join(rest[2:]))

    def _resolve(self, repository: Repository, name: str, commit: str, file: str) -> None:
        content = repository.files[commit].get(file)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            return self._send(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
        if repository.gated:
            return self._send(403, b"", headers | {"X-Error-Code": "GatedRepo"})
        if file.endswith(WEIGHTS):
            headers |= {"X-Linked-Etag": f'"{_sha(content)}"', "X-Linked-Size": str(len(content))}
            # As from another host: the client does not follow such links to ask for lengths and tags.
            elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
            return self._send(302, b"", headers | {"Location": f"{elsewhere}/cdn/{commit}/{name}/{file}"})
        return self._content(content, headers | {"ETag": f'"{_sha(content)[:40]}"'})

    def _content(self, content: bytes, headers: dict[str, str] | None = None) -> None:
        headers = headers or {}
        asked = self.headers["range"]
        status, body = 200, content
        if asked and self.hub.busy:
            self.hub.busy -= 1
            return self._send(429, b"", headers)
        if asked and not self.hub.whole:
            self.hub.ranges.append(asked)
            first, _, last = asked.removeprefix("bytes=").partition("-")
            stop = min(int(last) + 1, len(content)) if last else len(content)
            if int(first) >= len(content):
                return self._send(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
            status, body = 206, content[int(first) : stop]
            headers |= {"Content-Range": f"bytes {first}-{stop - 1}/{len(content)}"}
        if self.command == "GET" and self.path.startswith("/cdn/"):
            self.hub.tokens += filter(None, [self.headers["authorization"]])
            self.hub.sent += len(body)
            if self.hub.cut and len(body) > 200:
                self.hub.cut -= 1
                self._send(status, body, headers, keep=len(body) // 2)
                self.close_connection = True
                return None
        return self._send(status, body, headers)

    def _json(self, data: object) -> None:
        self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, keep: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            # Whoever asked for a part and is sent all of it, goes away.
            with suppress(ConnectionError):
                self.wfile.write(body[:keep])


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _entry(file: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": file, "size": len(content), "oid": _sha(content)[:40]}
    if file.endswith(WEIGHTS):
        entry["lfs"] = {"oid": _sha(content), "size": len(content), "pointerSize": 130}
    return entry


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub at `Hub.url`, until the end of the block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
