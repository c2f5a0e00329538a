"""The person's page: its API, what it refuses, many requests at once, and the page in a real browser."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra sagareid[serve] is not installed")
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagareid.deploy import gallery as galleries
from sagareid.deploy.extractor import Extractor
from sagareid.deploy.gallery import Batch, Model
from sagareid.deploy.threshold import Threshold
from sagareid.serving import app as app_module
from sagareid.serving import images, search, server
from sagareid.serving.app import create_app, filter_of
from sagareid.serving.guard import is_loopback
from sagareid.serving.options import TOKEN_VARIABLE, Limits
from sagareid.serving.search import Busy, Searcher

SCRIPT = "<img src=x onerror=document.title='run'>.jpg"  # a name that is markup
NAMES = [*(f"{i}.jpg" for i in range(8)), SCRIPT, "../secret.jpg", "/etc/hostname", "link.jpg", "gone.jpg", "text.jpg"]
LIMIT = 0.9999  # only an image and itself are as similar
MORNING = dt.datetime(2026, 11, 28, 8, 0, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def pictures(tiny_root) -> list[Path]:
    return sorted((tiny_root / "synthetic_pedestrians/query").iterdir())[: len(NAMES)]


@pytest.fixture(scope="module")
def place(tiny_run, pictures, tmp_path_factory):
    """(address of a gallery, its folder, an extractor): eight crops and one with a bad name; and rows whose files are
    outside the folder, behind a link, missing, and no image."""
    base = tmp_path_factory.mktemp("serving")
    folder = base / "crops"
    folder.mkdir()
    for name, file in zip(NAMES[:9], pictures):
        shutil.copyfile(file, folder / name)
    shutil.copyfile(pictures[9], base / "secret.jpg")
    (folder / "link.jpg").symlink_to(base / "secret.jpg")
    (folder / "text.jpg").write_text("<script>alert(1)</script>")
    extractor = Extractor.from_checkpoint(tiny_run, device="cpu")
    features = extractor([str(file) for file in pictures]).numpy()
    times = [MORNING + dt.timedelta(minutes=10 * i) for i in range(len(NAMES))]
    rows = pa.table(
        {
            "id": NAMES,
            "path": NAMES,
            "camera": pa.array(["1", "2", "it's \\ 3"] * 4 + ["1", "1"]),
            "time": pa.array(times, pa.timestamp("us", "UTC")),
            "track": pa.array([str(i // 2) for i in range(len(NAMES))]),
            "score": pa.array([0.5, float("nan"), *[None] * (len(NAMES) - 2)], pa.float64()),
        }
    )
    columns = {"camera": "text", "time": "time", "track": "text", "score": "number"}
    model = Model(extractor.width, extractor.checkpoint_sha256, extractor.feature, list(extractor.size))
    address = str(base / "index")
    galleries.create(address, model, columns, folder=str(folder), batches=lambda: [Batch(rows, features)])
    return address, folder, extractor


@pytest.fixture(scope="module")
def searcher(place):
    address, _, extractor = place
    found = Searcher(galleries.open_gallery(address), extractor)
    yield found
    found.close()


def client_of(searcher, place, **options) -> TestClient:
    # without a context: the app's end would end the searcher
    return TestClient(create_app(searcher, folder=str(place[1]), **options), base_url="http://127.0.0.1:8766")


@pytest.fixture(scope="module")
def client(searcher, place) -> TestClient:
    return client_of(searcher, place, threshold=Threshold(LIMIT))


@pytest.fixture(scope="module")
def crop(place) -> bytes:
    """The file of the gallery's first image."""
    return (place[1] / "0.jpg").read_bytes()


def png(width: int, height: int) -> bytes:
    """A PNG file that says it has so many pixels, of one colour: a few kilobytes for gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min(width * height + height, 10**7)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# ---- answers -------------------------------------------------------------------------------------------------------
def test_an_image_finds_itself(client, crop, place):
    answer = client.post("/api/query", content=crop, params={"k": 3, "attention": True}).json()
    first = answer["matches"][0]
    assert first["id"] == "0.jpg" and first["similarity"] == pytest.approx(1, abs=1e-4) and first["same_person"]
    assert first["camera"] == "1" and first["time"] == "2026-11-28T08:00:00Z" and first["values"] == {"score": 0.5}
    assert answer["nobody"] is False and [m["rank"] for m in answer["matches"]] == [1, 2, 3]
    assert answer["visibility"] is None  # this run has no read-out
    weights = np.array(answer["attention"])
    assert weights.ndim == 2 and weights.sum() == pytest.approx(1, abs=1e-4) and weights.std() > 0
    assert (answer["height"], answer["width"]) == np.asarray(Image.open(io.BytesIO(crop))).shape[:2]
    look = client.get("/api/look", params={"id": "0.jpg"}).json()
    np.testing.assert_allclose(look["attention"], weights, atol=1e-5)


def test_filters_and_nobody(client, crop):
    def ids(**params):
        answer = client.post("/api/query", content=crop, params={"k": 50, **params}).json()
        return answer, {m["id"] for m in answer["matches"]}

    assert ids()[1] == set(NAMES)
    assert ids(camera=["2", "it's \\ 3"])[1] == {name for i, name in enumerate(NAMES[:12]) if i % 3}
    assert ids(after="2026-11-28T08:10", before="2026-11-28T09:20:00+01:00")[1] == {"1.jpg", "2.jpg"}
    assert ids(from_clock="8:55", to_clock="9:05")[1] == {NAMES[6]}
    assert ids(where="track == 1 or track == 2", camera=["1"])[1] == {"3.jpg"}
    answer, found = ids(camera=["2"])
    assert answer["nobody"] is True and found and not any(m["same_person"] for m in answer["matches"])
    answer, found = ids(camera=["nowhere"])
    assert answer["nobody"] is True and not found


def test_a_box_is_the_crop(client, place, pictures):
    frame, person = Image.new("RGB", (300, 200), (90, 120, 60)), Image.open(pictures[2])
    frame.paste(person, (40, 30))
    box = f"40,30,{40 + person.width},{30 + person.height}"
    out = io.BytesIO()
    frame.save(out, "PNG")
    boxed = client.post("/api/query", content=out.getvalue(), params={"k": 1, "box": box}).json()
    assert boxed["matches"][0]["id"] == "2.jpg" and boxed["width"] == person.width
    outside = client.post("/api/query", content=out.getvalue(), params={"box": "900,900,950,990"})
    assert outside.status_code == 422 and "no pixel inside the image of 300 x 200" in outside.json()["detail"]


def test_what_the_page_is_told(client):
    about = client.get("/api/gallery").json()
    assert about["images"] == len(NAMES) and about["columns"]["time"] == "time" and about["threshold"] == LIMIT
    assert about["max_matches"] >= 50 and "image/jpeg" in about["formats"]


# ---- uploads -------------------------------------------------------------------------------------------------------
def saved(format: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 40)).save(out, format)
    return out.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 415, "no body"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", 415, "expected JPEG, PNG, WEBP"),
        (saved("GIF"), 415, "none of its formats"),
        (saved("TIFF"), 415, "none of its formats"),
        (saved("JPEG")[:-200], 415, "no whole image"),
        (png(60_000, 60_000), 413, "at most 24 million pixels"),
        (png(6000, 5000), 413, "6000 x 5000 pixels; at most 24 million pixels"),
        (bytes(16 * 2**20 + 1), 413, "more than 16 MiB"),
    ],
    ids=["empty", "svg", "gif", "tiff", "cut", "bomb", "many", "large"],
)
def test_uploads_that_are_refused(body, status, said, client):
    found = client.post("/api/query", content=body)
    assert found.status_code == status and said in found.json()["detail"]


def test_a_long_upload_without_a_length_is_cut_off(searcher, place):
    sent = []

    def endless():
        while len(sent) < 100:
            sent.append(1)
            yield bytes(1000)

    client = client_of(searcher, place, limits=Limits(max_bytes=5000))
    assert client.post("/api/query", content=endless()).status_code == 413


def test_an_image_at_the_limit_is_decoded_and_turned():
    image = Image.new("RGB", (40, 20), "red")
    image.putpixel((0, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    out = io.BytesIO()
    image.save(out, "PNG", exif=exif)
    found = images.decode(out.getvalue(), 800)
    assert found.size == (20, 40) and found.getpixel((19, 0)) == (0, 0, 255) and not found.info
    with pytest.raises(images.TooLarge, match="40 x 20 pixels"):
        images.decode(out.getvalue(), 799)


# ---- files of the gallery ------------------------------------------------------------------------------------------
def test_crops_are_sent_anew(client, place):
    found = client.get("/api/crop", params={"id": "0.jpg"})
    assert found.status_code == 200 and found.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(found.content)) as image, Image.open(place[1] / "0.jpg") as original:
        assert image.size == original.size and max(image.size) <= images.CROP_SIDE
    assert client.get("/api/crop", params={"id": SCRIPT}).status_code == 200


@pytest.mark.parametrize("route", ["crop", "look"])
@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/hostname", "link.jpg", "gone.jpg"])
def test_no_file_outside_the_folder_is_sent(name, route, client, place):
    found = client.get(f"/api/{route}", params={"id": name})
    assert found.status_code == 404 and str(place[1].parent) not in found.text and "/etc" not in found.text


def test_what_is_no_image_or_no_id_is_not_sent(client):
    assert client.get("/api/crop", params={"id": "text.jpg"}).status_code == 415
    for name in ("0.JPG", "./0.jpg", "nobody", "a\0b"):
        assert client.get("/api/crop", params={"id": name}).status_code == 404
    for path in ("/page.css/../../app.py", "/..%2f..%2fetc/passwd", "/assets/serve/index.html", "/docs", "/redoc"):
        assert client.get(path).status_code == 404


def test_a_link_out_of_the_folder_and_one_inside(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"1")
    (tmp_path / "out.jpg").write_bytes(b"2")
    (tmp_path / "in/inside.jpg").symlink_to("a.jpg")
    (tmp_path / "in/up").symlink_to(tmp_path)
    folder = str(tmp_path / "in")
    assert (
        images.find_crop(folder, "inside.jpg") == images.find_crop(folder, f"{folder}/a.jpg") == tmp_path / "in/a.jpg"
    )
    for path in ("up/out.jpg", "../out.jpg", str(tmp_path / "out.jpg"), "", ".", "../in", "a.jpg\0"):
        assert images.find_crop(folder, path) is None
    assert images.find_crop("", "a.jpg") is None


# ---- who may ask ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:8766"}, 200),
        ({"host": "camera.example:8766"}, 200),
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://127.0.0.1:8766"}, 200),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_pages_of_other_sites_and_other_names_are_refused(headers, status, searcher, place):
    client = client_of(searcher, place, names=["camera.example"])
    found = client.get("/api/gallery", headers=headers)
    assert found.status_code == status
    assert "access-control-allow-origin" not in found.headers


def test_a_token_is_needed_where_one_is_set(searcher, place):
    client = client_of(searcher, place, token="sésame")
    for path in ("/api/gallery", "/api/crop?id=0.jpg", "/api/openapi.json"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer sésame".encode()}).status_code == 200
    assert client.post("/api/query", content=b"x").status_code == 401
    assert client.get("/").status_code == client.get("/page.js").status_code == 200


def test_addresses_beyond_this_machine_get_a_token(monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.7", "cam")] == [
        *[True] * 3,
        *[False] * 3,
    ]
    assert (
        server.token_for("127.0.0.1") == ""
        and len(server.token_for("0.0.0.0")) >= 24
        and server.token_for("::") != server.token_for("::")
    )
    monkeypatch.setenv(TOKEN_VARIABLE, "mine")
    assert server.token_for("0.0.0.0") == server.token_for("127.0.0.1") == "mine"


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/api/gallery", "/nothing"])
def test_a_browser_is_told_to_run_nothing_else(path, client):
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"


def test_the_page_needs_no_network_and_no_inline_script():
    for file in app_module.PAGE.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text and "//cdn" not in text, file
        assert "innerHTML" not in text and " style=" not in text and " onclick" not in text, file


# ---- many at once --------------------------------------------------------------------------------------------------
def test_64_requests_at_once_and_none_is_lost(searcher, place, pictures, monkeypatch):
    """Each gets the answer to its own image, and the model sees several at a time."""
    httpx = pytest.importorskip("httpx2")
    sizes, answer = [], Searcher._answer
    monkeypatch.setattr(Searcher, "_answer", lambda self, jobs: (sizes.append(len(jobs)), answer(self, jobs)))
    app = create_app(searcher, folder=str(place[1]))
    files = [file.read_bytes() for file in (place[1] / name for name in NAMES[:8])]

    async def ask() -> list:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            asked = (client.post("/api/query", content=files[i % 8], params={"k": 1 + i % 2}) for i in range(64))
            return await asyncio.gather(*asked)

    answers = asyncio.run(ask())
    assert [a.status_code for a in answers] == [200] * 64
    assert [a.json()["matches"][0]["id"] for a in answers] == [f"{i % 8}.jpg" for i in range(64)]
    assert [len(a.json()["matches"]) for a in answers] == [1 + i % 2 for i in range(64)]
    assert sum(sizes) == 64 and 1 < max(sizes) <= search.BATCH


def test_more_than_may_wait_are_told_to_come_again(searcher, client, crop, monkeypatch):
    def full(*args, **options):
        raise Busy("256 requests wait already; ask again in a moment")

    monkeypatch.setattr(searcher, "submit", full)
    found = client.post("/api/query", content=crop)
    assert found.status_code == 503 and found.headers["retry-after"] == "2"


def test_a_fault_of_one_batch_ends_nothing(searcher, client, crop, monkeypatch, caplog):
    def broken(*args, **options):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(searcher.extractor, "iterate", broken)
        with pytest.raises(RuntimeError, match="no memory"):
            searcher.submit(images.decode(crop, 10**6), k=1).result(timeout=60)
    assert client.post("/api/query", content=crop).status_code == 200


def test_a_wrong_filter_fails_alone(searcher, crop):
    image = images.decode(crop, 10**6)
    wrong, right = searcher.submit(image, k=1, where="shoe == 3"), searcher.submit(image, k=1)
    with pytest.raises(ValueError, match="shoe"):
        wrong.result(timeout=60)
    assert right.result(timeout=60).hits[0].id == "0.jpg"


def test_small_answers_go_at_once():
    """asyncio switches Nagle's algorithm off for sockets that say they are TCP; else each answer waits 40 ms."""
    with server._listener("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        taken, _ = listener.accept()
        with taken:
            assert taken.proto == socket.IPPROTO_TCP
        with pytest.raises(OSError, match=r"cannot listen on port \d+ of 127.0.0.1 \(Address already in use\). Name"):
            server._listener("127.0.0.1", listener.getsockname()[1])


# ---- anything at all -----------------------------------------------------------------------------------------------
def values_of(schema: dict) -> st.SearchStrategy:
    """What a parameter may be by its schema, and what it may not."""
    kinds = [schema, *schema.get("anyOf", [])]
    odd = st.sampled_from(["", "null", "-1", "1e400", "999999999999999999999", "a'b\"c\\", "\0", "é\u202e", "()", "%"])
    own = [odd, st.text(max_size=12)]
    for kind in kinds:
        if kind.get("type") == "integer":
            own.append(st.integers(kind.get("minimum", -9), kind.get("maximum", 10**6)))
        if kind.get("type") == "boolean":
            own.append(st.booleans())
        if kind.get("format") == "date-time":
            own += [st.datetimes(), st.datetimes(timezones=st.timezones()).map(dt.datetime.isoformat)]
        if "pattern" in kind:
            own.append(st.from_regex(kind["pattern"], fullmatch=True))
        if kind.get("type") == "array":
            own.append(st.lists(values_of(kind["items"]), max_size=3))
    return st.one_of(own)


FILTERS = st.lists(
    st.sampled_from(
        "camera time track score nothing == != < <= > >= in between and or not ( ) , 3 -1.5 99999999999999999999 8:00 "
        "22:00 2026-11-28 2026-11-28T08:00:00Z 0001-01-01 'x' \"it's\" true".split()
    ),
    max_size=9,
).map(" ".join)


@given(data=st.data())
@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_whatever_is_asked_the_answer_is_one_of_the_schema(data, client, crop):
    """Every route of the OpenAPI schema, with parameters of its kinds and of others."""
    schema = client.app.openapi()
    path = data.draw(st.sampled_from(sorted(schema["paths"])))
    [(method, route)] = schema["paths"][path].items()
    params = {}
    for parameter in route.get("parameters", []):
        if data.draw(st.booleans()):
            values = values_of(parameter["schema"])
            params[parameter["name"]] = data.draw(
                st.one_of(values, FILTERS) if parameter["name"] == "where" else values
            )
        elif parameter["name"] == "id" and data.draw(st.booleans()):
            params["id"] = data.draw(st.sampled_from(NAMES))
    body = data.draw(st.one_of(st.just(crop), st.just(crop), st.binary(max_size=50))) if method == "post" else None
    found = client.request(method, path, params=params, content=body)
    assert str(found.status_code) in route["responses"], (params, found.text)
    if found.status_code != 200:
        assert set(found.json()) == {"detail"} and isinstance(found.json()["detail"], str)
    elif path == "/api/query":
        app_module.Answer.model_validate(found.json())


def test_texts_are_quoted_in_filters():
    assert filter_of(["a'b", "c\\"], None, None, None, None, " ") == r"camera in ('a\'b', 'c\\')"
    assert filter_of([], None, None, "22:00", "6:00", "x == 1 or y == 2") == (
        "time between 22:00 and 6:00 and (x == 1 or y == 2)"
    )
    with pytest.raises(ValueError, match="both"):
        filter_of([], None, None, "22:00", None, "")


# ---- in a browser --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def chromium():
    """A page of headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.slow
def test_the_page_in_a_browser(place, tiny_run, pictures, chromium, repo, tmp_path):
    """The command itself, on an address that needs a token: a file, a box, filters, the answer, its timeline and a name
    that is markup; by the keyboard, and 400 pixels wide. Then Ctrl-C."""
    address, _, _ = place
    words = [address, "--run", tiny_run, "--threshold", LIMIT, "--host", "0.0.0.0", "--port", "0", "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    with subprocess.Popen(
        [sys.executable, repo / "tools/serve.py", *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            line = process.stdout.readline().split()
            assert line and "#token=" in line[0], process.stderr.read()
            url = line[0].replace("0.0.0.0", "127.0.0.1")
            _drive(chromium, url, pictures, tmp_path)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 130 and "the page is closed" in process.stderr.read()
        finally:
            process.kill()


def until(page, expression: str) -> None:
    """Wait until it is true. The page's own policy lets no test wait inside it (`unsafe-eval`)."""
    for _ in range(300):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {expression}")


def _drive(chromium, url: str, pictures, tmp_path) -> None:
    page = chromium.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark")
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto(url)
    until(page, "document.getElementById('gallery').textContent.includes('images')")
    assert "token" not in page.url

    # a frame and a box, typed; the search by the keyboard
    frame, person = Image.new("RGB", (300, 200), (90, 120, 60)), Image.open(pictures[8])
    frame.paste(person, (40, 30))
    frame.save(tmp_path / "frame.png")
    page.set_input_files("#file", tmp_path / "frame.png")
    page.wait_for_selector("#preview:not([hidden])")
    page.fill("#box", f"40 30 {40 + person.width} {30 + person.height}")
    page.check("#attention")
    page.focus("#k")
    page.keyboard.press("Enter")
    page.wait_for_selector("#matches li")
    assert "Probably this person" in page.inner_text("#verdict")
    assert page.evaluate("document.activeElement.id") == "verdict"
    first = page.locator("#matches li").first
    assert first.locator(".name").inner_text() == SCRIPT and page.locator("#matches .name img").count() == 0
    until(page, "document.querySelector('#matches img').naturalWidth > 0")
    until(page, "!document.querySelector('#matches canvas').hidden")
    assert page.title() == "Who is this?", "a script ran out of a file name"
    assert page.locator("#timeline circle").count() == page.locator("#matches li").count() == 12
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.screenshot(path=tmp_path / "narrow.png", full_page=True)

    # another person by a box that is drawn, one camera: nobody there
    page.set_viewport_size({"width": 1200, "height": 900})
    seen = page.locator("#frame").bounding_box()
    page.mouse.move(seen["x"] + 5, seen["y"] + 5)
    page.mouse.down()
    page.mouse.move(seen["x"] + 60, seen["y"] + 90, steps=3)
    page.mouse.up()
    assert len(page.input_value("#box").split(",")) == 4
    page.fill("#camera", "2")
    page.uncheck("#attention")
    page.click("#search")
    until(page, "document.getElementById('verdict').textContent.startsWith('Nobody')")
    assert page.locator("#matches li").count() == page.locator("#matches li.below").count() == 4
    page.screenshot(path=tmp_path / "wide.png", full_page=True)

    # an error is told, and the next search works
    page.fill("#where", "shoe == 3")
    page.click("#search")
    page.wait_for_selector("#problem:not([hidden])")
    assert "shoe" in page.inner_text("#problem")
    assert [text for text in wrong if "404" not in text and "422" not in text and "415" not in text] == []
    page.close()


def test_a_missing_extra_is_named(monkeypatch):
    from sagareid.serving import require_extra

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ModuleNotFoundError, match=r"sagareid\[serve\]"):
        require_extra()
