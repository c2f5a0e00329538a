"""A hub of one process's memory: what `huggingface_hub` asks for in order to fetch, create and commit. Real HTTP.

Small files are committed in the request, weights by the LFS protocol, as the real hub decides it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_token_of_the_tests"


class Hub:
    """Its repositories: name -> {"main": commit, commit: {file: bytes}}, and every request that came."""

    def __init__(self):
        self.repositories: dict[str, dict] = {}
        self.private: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.uploads: dict[str, bytes] = {}
        self.url = ""

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Add files to what main has; returns the commit."""
        states = self.repositories.setdefault(repository, {"main": ""})
        files = states.get(states["main"], {}) | files
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        states["main"], states[commit] = commit, files
        return commit


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def _answer(self, status: int, body: object = b"", headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _known(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_HEAD(self):
        self._file()

    def do_GET(self):
        self._file()

    def _file(self) -> None:
        self.hub.requests.append((self.command, self.path))
        found = re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if not found:
            return self._answer(404)
        repository, revision, file = found.groups()
        states = self.hub.repositories.get(repository)
        if states is None or (repository in self.hub.private and not self._known()):
            return self._answer(401, headers={"X-Error-Code": "RepoNotFound"})
        commit = states["main"] if revision == "main" else revision
        if commit not in states:
            return self._answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        if file not in states[commit]:
            return self._answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = states[commit][file]
        etag = hashlib.sha256(content).hexdigest()
        self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def do_PUT(self):
        self.hub.uploads[self.path.rpartition("/")[2]] = self._read()
        self._answer(200)

    def do_POST(self):
        self.hub.requests.append((self.command, self.path))
        body = self._read()
        if not self._known():
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            if repository in self.hub.repositories:
                return self._answer(409, {"error": "it exists", "url": f"{self.hub.url}/{repository}"})
            self.hub.repositories[repository] = {"main": ""}
            if asked.get("visibility") == "private" or asked.get("private"):
                self.hub.private.add(repository)
            return self._answer(200, {"url": f"{self.hub.url}/{repository}"})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            modes = {True: "lfs", False: "regular"}
            files = [
                {"path": f["path"], "uploadMode": modes[f["path"].endswith(".safetensors")], "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "authenticated": True, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            kind = "application/vnd.git-lfs+json"
            return self._answer(200, {"transfer": "basic", "objects": objects}, {"Content-Type": kind})
        if found := re.match(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            return self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        return self._answer(404)

    def _commit(self, repository: str, lines: list[dict]) -> None:
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        commit = self.hub.commit(repository, files)
        url = f"{self.hub.url}/{repository}/commit/{commit}"
        self._answer(200, {"success": True, "commitOid": commit, "commitUrl": url})


@contextmanager
def running_hub():
    """A hub that answers at `hub.url` until the end of the block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
