"""Tiles, marks and curves as files and as parts of a self-contained page."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import ClassVar

import pytest
import torch
from PIL import Image, ImageStat

from sagareid.data.images import UnreadableImage
from sagareid.reports import html, pictures
from sagareid.reports.pictures import Block, Row, Tile

RED = Image.new("RGB", (8, 16), "red")


class Page(HTMLParser):
    """What a page refers to, its pictures without a description, and tags left open."""

    VOID: ClassVar = {"meta", "img", "br", "link", "input", "path", "use"}

    def __init__(self, text: str):
        super().__init__()
        self.outside, self.silent, self.open, self.images = [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        for name in ("src", "href", "xlink:href", "data", "srcset"):
            if name in attrs and not attrs[name].startswith(("data:", "#")):
                self.outside.append((tag, attrs[name]))
        if tag == "img" or attrs.get("role") == "img":
            self.images += 1
            if not (attrs.get("alt") or attrs.get("aria-label")):
                self.silent.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def test_overlay_is_brightest_where_the_map_is_largest():
    picture = pictures.overlay(Image.new("RGB", (8, 16)), torch.eye(4, 2))
    assert picture.size == (8, 16)
    assert sum(picture.getpixel((0, 0))) > sum(picture.getpixel((0, 15)))


def test_marks_differ_without_their_colour():
    right, wrong = pictures.MARKS["right"], pictures.MARKS["wrong"]
    assert right.symbol != wrong.symbol and right.line != wrong.line and right.meaning != wrong.meaning


def test_draw_wraps_long_rows_and_leaves_places_empty(tmp_path):
    tiles = [Tile(RED, "query", "query"), None, *[Tile(RED, str(i), "wrong") for i in range(4)]]
    pictures.draw([Block("one", [Row(tiles, "AP 3.0")])], tmp_path / "wide.png", columns=6)
    pictures.draw([Block("one", [Row(tiles, "AP 3.0")])], tmp_path / "high.png", columns=3)
    wide, high = (Image.open(tmp_path / name).convert("RGB") for name in ("wide.png", "high.png"))
    assert wide.width > high.width and high.height > wide.height

    def red(picture):
        return sum(p[0] > 200 and p[1] < 50 for p in picture.get_flattened_data())

    assert red(high) == pytest.approx(red(wide), rel=0.1)  # every tile is there
    with pytest.raises(ValueError, match="png, .svg or .pdf"):
        pictures.draw([Block("", [Row(tiles)])], tmp_path / "a.bmpx")
    with pytest.raises(ValueError, match="nothing to draw"):
        pictures.draw([], tmp_path / "a.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["high.png", "wide.png"]


def test_open_small_names_what_it_cannot_read(tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(UnreadableImage, match="a.jpg"):
        pictures.open_small(tmp_path / "a.jpg")
    Image.new("L", (2000, 1000), 9).save(tmp_path / "b.png")
    small = pictures.open_small(tmp_path / "b.png")
    assert small.mode == "RGB" and max(small.size) == pictures.LARGEST


def test_curves_follow_the_theme_and_say_what_they_show():
    figure = pictures.curves({"loss": {"a": ([1, 2], [3.0, 1.0]), "b": ([1, 2], [2.0, float("nan")])}}, x="iteration")
    drawn = html.svg(figure, 'losses of "a" & b')
    assert "currentColor" in drawn and pictures.INK not in drawn
    assert "losses of &quot;a&quot; &amp; b" in drawn and "<?xml" not in drawn
    assert html.svg(pictures.curves({"l": {"": ([1], [1.0])}}, x="i"), "x") == html.svg(
        pictures.curves({"l": {"": ([1], [1.0])}}, x="i"), "x"
    )


def test_a_page_is_whole_escaped_and_refers_to_nothing_outside(tmp_path):
    block = Block("<b>", [Row([Tile(RED, "1", "right", "rank 1"), None, Tile(RED, "2 < 3", "wrong")], "a & b")])
    body = html.join(
        [
            html.heading(2, "<script>", "a"),
            html.legend(),
            html.note("x < y"),
            html.table(["n", "v"], [["<i>", 1.26], [html.link("go", "a"), None]], "t"),
            html.details("more", html.paragraph("&")),
            html.blocks([block]),
            html.svg(pictures.curves({"l": {"": ([1], [1.0])}}, x="i"), "a curve"),
        ]
    )
    html.write(tmp_path / "a.html", "<t>", body)
    text = (tmp_path / "a.html").read_text()
    page = Page(text)
    assert not page.outside and not page.silent and not page.open and page.images == 3
    assert "<script" not in text and "<i>" not in text and "<b>" not in text and "1.3" in text
    assert "rank 1, the query&#x27;s person" in text and "dashed" in text and "✗" in text
    assert "default-src 'none'" in text


def test_a_picture_in_the_page_is_the_picture():
    import base64
    import io

    markup = html.image(RED, "red")
    data = base64.b64decode(markup.split("base64,")[1].split('"')[0])
    assert ImageStat.Stat(Image.open(io.BytesIO(data))).mean[0] > 240
