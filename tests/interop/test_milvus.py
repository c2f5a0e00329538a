"""Galleries in Milvus Lite: its file, and its own server over the wire, by the code that addresses a cluster."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")
from gallery_contract import CHECKS, COLUMNS, MODEL, batch, unit
from test_gallery import drawn_filter

from sagareid.deploy import gallery
from sagareid.deploy.gallery import filters


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of Milvus Lite's server, which speaks Milvus's protocol over gRPC."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    words = ["server", "--data-dir", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([sys.executable, "-m", "milvus_lite", *words], stdout=log, stderr=log)
    for _ in range(300):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.1)
    yield f"milvus:http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    process.wait(20)


@pytest.fixture(params=["file", "server"])
def address(request, tmp_path):
    if request.param == "file":
        return f"milvus:{tmp_path / 'people.db'}"
    return f"{request.getfixturevalue('server')}/people_{request.node.name.split('[')[0]}_{time.time_ns()}"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_milvus_keeps_the_contract(check, address):
    check(lambda *args, **options: gallery.create(address, *args, **{"kind": "flat"} | options))


def test_texts_of_every_kind(address):
    """What a filter's text may hold does not leave it."""
    texts = ["it's", 'a "quote"', "back\\slash", "ünï", "1 == 1 or true", "]", "%", ""]
    rows, features = batch(0, len(texts))
    import pyarrow as pa

    rows = rows.set_column(rows.column_names.index("track"), "track", pa.array(texts))
    crops = gallery.create(address, MODEL, COLUMNS, kind="flat", batches=lambda: [gallery.Batch(rows, features)])
    for text in texts:
        quoted = "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
        for where in (f"track == {quoted}", f"track in ({quoted}, 'no')"):
            assert [hit.values["track"] for hit in crops.query(features[:1], 9, where=where)[0]] == [text]
        assert crops.count(f"track != {quoted}") == len(texts) - 1


def test_random_filters_pass_the_same_as_in_faiss(address):
    rows, draw = batch(0, 80), random.Random(0)
    crops = gallery.create(address, MODEL, COLUMNS, kind="flat", batches=lambda: [rows])
    for _ in range(150):
        text, _ = drawn_filter(draw, 4)
        wanted = rows.rows["id"].to_numpy()[filters.passing(filters.parse(text, COLUMNS), rows.rows)]
        assert sorted(h.id for h in crops.query(rows.features[:1], 80, where=text)[0]) == sorted(wanted), text


def test_an_approximate_index(address):
    crops = gallery.create(address, MODEL, COLUMNS, kind="hnsw", batches=lambda: [batch(0, 500)])
    x = unit(500)
    exact = np.argsort(-(x[:50] @ x.T), axis=1)[:, :10]
    found = crops.query(x[:50], 10)
    assert np.mean([len({f"i{j}" for j in a} & {h.id for h in b}) / 10 for a, b in zip(exact, found)]) > 0.95
    with pytest.raises(ValueError, match="exact search takes one of kind flat"):
        crops.query(x[:1], exact=True)
    with pytest.raises(ValueError, match="16384 at most"):
        crops.query(x[:1], 20_000)


WRITER = """
import os, sys
sys.path.insert(0, sys.argv[2])
from gallery_contract import COLUMNS, MODEL, batch
from sagareid.deploy import gallery
crops = gallery.create(sys.argv[1], MODEL, COLUMNS, kind="flat")
for low in range(0, 400, 20):
    crops.add([batch(low, low + 20)], source=str(low))
    print(low, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(address):
    words = [sys.executable, "-c", WRITER, address, os.path.dirname(os.path.dirname(__file__))]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    lines = [process.stdout.readline() for _ in range(5)]
    process.send_signal(signal.SIGKILL)
    lines += process.communicate()[0].splitlines()
    sources = {line.strip() for line in lines}
    crops = gallery.open_gallery(address)
    assert 5 <= len(sources) < 20 and crops.sources() >= sources and crops.count() >= 20 * len(sources)
    for low in range(0, 400, 20):  # the same again ends it
        crops.add([batch(low, low + 20)], source=str(low))
    assert crops.count() == 400 and len(crops.sources()) == 20


def test_a_file_is_for_one_process_at_a_time(tmp_path):
    address = f"milvus:{tmp_path / 'people.db'}"
    crops = gallery.create(address, MODEL, COLUMNS, batches=lambda: [batch(0, 10)])
    words = [sys.executable, "-m", "sagareid", "search", "describe", address]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path / 'people.db'} cannot be opened: another")
    assert crops.count() == 10


def test_addresses_that_lead_nowhere(tmp_path, monkeypatch):
    for place, error, message in (
        (tmp_path / "no.db", FileNotFoundError, "no gallery at .*no.db"),
        (tmp_path / "no.txt", FileNotFoundError, "no gallery at"),
        ("http://127.0.0.1:9", ValueError, "names no collection; expected milvus:http://HOST:PORT/COLLECTION"),
        ("http://127.0.0.1:9/people", OSError, "Milvus at http://127.0.0.1:9/people does not answer"),
    ):
        with pytest.raises(error, match=message):
            gallery.open_gallery(f"milvus:{place}")
    with pytest.raises(ValueError, match="expected milvus:FILE.db or"):
        gallery.create(f"milvus:{tmp_path / 'a.txt'}", MODEL, COLUMNS)
    with pytest.raises(ValueError, match="no index of kind 'ivfpq' in"):
        gallery.create(f"milvus:{tmp_path / 'a.db'}", MODEL, COLUMNS, kind="ivfpq")


def test_the_commands(tmp_path, call_tool, capsys):
    """search.py build, add, query, delete, expire and describe, as with FAISS."""
    import pyarrow.parquet as pq

    from sagareid.deploy import extract_folder as extract

    rows, features = batch(0, 60)
    about = {"width": 16, "checkpoint_sha256": "abc", "feature": "fusion", "folder": "/crops"}
    columns = {name: rows[name].combine_chunks() for name in ("camera", "time")}
    table = extract._table(rows["path"].to_pylist(), features, [""] * 60, about, columns)
    pq.write_table(table, tmp_path / "f.parquet")
    address = f"milvus:{tmp_path / 'people.db'}"
    assert call_tool("search.py", "build", tmp_path / "f.parquet", "-o", address) == 0
    assert capsys.readouterr().out.startswith("flat, 60 vectors of 16\ncolumns: camera (text), time (time)")
    assert call_tool("search.py", "add", address, tmp_path / "f.parquet") == 0
    assert "0 added, 0 of them in place of earlier ones; 60 were there already" in capsys.readouterr().out
    words = ["--features", tmp_path / "f.parquet", "-k", 2, "--where", "camera in (1, 2)", "-o", tmp_path / "m.csv"]
    assert call_tool("search.py", "query", address, *words) == 0
    lines = (tmp_path / "m.csv").read_text().splitlines()
    assert lines[0] == "query,rank,similarity,path,camera,time"
    assert {line.split(",")[4] for line in lines[1:]} == {"1", "2"}
    assert call_tool("search.py", "delete", address, "3.jpg") == 0
    assert call_tool("search.py", "expire", address, "--older-than", "1s", "--erase") == 0
    assert call_tool("search.py", "describe", address, "--where", "camera == 1") == 0
    out = capsys.readouterr().out
    assert "1 images deleted, 59 left" in out and "59 images deleted, 0 left" in out and "0 images pass" in out
