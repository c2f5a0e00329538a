"""tools/benchmark_serving.py against a small server of the standard library: what is lost is counted."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sagareid.benchmarks import serving


class Answering(BaseHTTPRequestHandler):
    """Answers; to bodies "busy" and "nobody" with a status and without a match, to "gone" not at all."""

    protocol_version = "HTTP/1.1"
    asked: list = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.asked.append((self.path, body))
        if body == b"gone":
            self.close_connection = True
            return
        answer = json.dumps({"matches": [] if body == b"nobody" else [1]}).encode()
        self.send_response(503 if body == b"busy" else 200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def address():
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Answering.asked.clear()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_every_request_is_sent_once_and_what_is_not_answered_is_lost(address):
    found = serving.ask(address, [b"a", b"busy", b"nobody", b"gone", b"b"], clients=4, requests=20, k=3)
    assert len(Answering.asked) == 20 and {path for path, _ in Answering.asked} == {"/api/query?k=3"}
    assert found["answered"] == len(found["ms"]) == 8 and found["ms"] == sorted(found["ms"])


def test_the_report_says_what_is_lost(address, tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").write_bytes(b"busy")

    class Ready:
        def __init__(self, words):
            assert words == ["index"]

        def __enter__(self):
            return address

        def __exit__(self, *args):
            return None

    monkeypatch.setattr(serving, "_server", Ready)
    saved = []
    result = serving.run(
        words=["index"], images=tmp_path, clients=[1, 3], requests=10, command="command", done=lambda r: saved.append(1)
    )
    assert [run["answered"] for run in result["runs"]] == [5, 5] and saved == [1, 1]
    text = serving.table(result)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert [row[:3] for row in rows[2:]] == [["1", "10", "5"], ["3", "10", "5"]] and "50 % within, ms" in rows[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image"):
        serving.run(words=["index"], images=tmp_path / "empty", clients=[1], requests=1, command="")


@pytest.mark.slow
def test_a_server_that_does_not_start_tells_why(tmp_path):
    """The command in a process of its own, without a gallery."""
    with pytest.raises(RuntimeError, match=r"did not start: .*(no gallery|gallery|fastapi|uvicorn)"):
        with serving._server([str(tmp_path), "--checkpoint", str(tmp_path)]):
            pass
