"""One self-contained web page: no script, no network, light and dark. Text is escaped here; `Html` already is."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterable, Sequence
from html import escape as escape_markup
from pathlib import Path
from urllib.parse import quote

from matplotlib.figure import Figure
from PIL import Image

from ..evaluation.tables import without_gaps
from ..files import write_text
from .pictures import INK, MARKS, Block, Tile, clean, names_as_they_are

__all__ = [
    "Html",
    "blocks",
    "details",
    "heading",
    "join",
    "legend",
    "note",
    "page",
    "paragraph",
    "svg",
    "table",
    "write",
]

# A browser loads nothing that is not in the page itself.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1b1e23; --soft: #5b6470; }
:root { --line: #d5dae1; --box: #f4f6f8; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --text: #e4e7eb; --soft: #9aa4b0; --line: #363d46; --box: #1d2127; --link: #7db7f0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.2rem 4rem; max-width: 76rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; } h4 { font-size: .9rem; margin: 1rem 0 .2rem; }
h1, h2, h3, h4, p, summary, figcaption, li { overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 60rem; } a { color: var(--link); } code { font-size: .88em; overflow-wrap: anywhere; }
.soft, figcaption, caption { color: var(--soft); }
.note { border-left: 3px solid var(--soft); background: var(--box); padding: .5rem .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; } tr.marked { background: var(--box); }
td.number, th.number { text-align: right; } caption { text-align: left; font-size: .85rem; }
details { margin: .6rem 0; } summary { cursor: pointer; font-weight: 600; }
h1, h2, h3, h4, p, th, td, caption, summary, figcaption, .label, li { unicode-bidi: plaintext; }
svg { display: block; max-width: 100%; height: auto; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: .6rem; }
.curves.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 205px), 1fr)); }
.curve { background: var(--box); border: 1px solid var(--line); border-radius: 8px; padding: .3rem; min-width: 0; }
.curve svg { width: 100%; }
.row { display: flex; align-items: flex-end; margin: .3rem 0; gap: .5rem; }
.label { flex: 0 0 6.5rem; align-self: center; font-size: .82rem; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; align-items: flex-end; gap: .4rem; }
figure { margin: 0; } .tile { width: 5rem; } .gap { width: 5rem; }
.frame { border: 3px solid transparent; padding: 1px; }
.tile img { display: block; width: 100%; height: auto; border-radius: 2px; }
.tile figcaption { font-size: .7rem; line-height: 1.2; text-align: center; padding-bottom: .15rem; }
"""


class Html(str):
    """Markup, as opposed to text that is still to be escaped."""


def escape(text: str) -> str:
    """Text for a page: markup, and what no page can hold, escaped."""
    return escape_markup(clean(text))


def _escaped(text: object) -> Html:
    return text if isinstance(text, Html) else Html(escape(str(text)))


def join(parts: Iterable[Html]) -> Html:
    return Html("\n".join(parts))


def heading(level: int, text: str, name: str = "") -> Html:
    """A heading; `name` is the target of links to it."""
    anchor = f' id="{escape(name)}"' if name else ""
    return Html(f"<h{level}{anchor}>{_escaped(text)}</h{level}>")


def paragraph(text: str, soft: bool = False) -> Html:
    return Html(f"<p{' class=soft' if soft else ''}>{_escaped(text)}</p>")


def note(text: str) -> Html:
    """A remark that stands out, such as what is left out and why."""
    return Html(f'<p class="note">{_escaped(text)}</p>')


def link(text: str, name: str) -> Html:
    """A link to the `heading` of that name."""
    return Html(f'<a href="#{quote(clean(name))}">{_escaped(text)}</a>')


def details(summary: str, body: Html, opened: bool = False) -> Html:
    """A part of the page that folds."""
    return Html(f"<details{' open' if opened else ''}><summary>{_escaped(summary)}</summary>\n{body}\n</details>")


def table(
    headers: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "", marked: Collection[int] = ()
) -> Html:
    """A table, which scrolls where the window is narrow; numbers are aligned right, floats have one decimal.

    A column without a value is left out, and another cell without one (None or "") is marked (`without_gaps`).

    Args:
        marked: numbers of the rows that stand out.
    """
    headers, rows = without_gaps(headers, rows)

    def cell(value: object, number: bool) -> str:
        text = f"{value:.1f}" if isinstance(value, float) else value
        return f"<td{' class=number' if number else ''}>{_escaped(text)}</td>"

    numeric = [any(isinstance(row[i], (int, float)) for row in rows) for i in range(len(headers))]
    head = "".join(
        f'<th scope="col"{" class=number" if n else ""}>{_escaped(h)}</th>' for h, n in zip(headers, numeric)
    )
    body = "\n".join(
        f"<tr{' class=marked' if i in marked else ''}>{''.join(map(cell, row, numeric))}</tr>"
        for i, row in enumerate(rows)
    )
    title = f"<caption>{_escaped(caption)}</caption>" if caption else ""
    return Html(
        f'<div class="scroll" tabindex="0"><table>{title}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def svg(figure: Figure, alt: str) -> Html:
    """A figure inside the page; what is drawn in INK takes the colour of the text, light or dark."""
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with names_as_they_are({"svg.fonttype": "none", "svg.hashsalt": clean(alt)}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return Html(text.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1))


def data_uri(picture: Image.Image) -> str:
    """An image as an address that holds it, as JPEG."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def image(picture: Image.Image, alt: str) -> Html:
    """An image inside the page."""
    size = f'width="{picture.width}" height="{picture.height}"'
    return Html(f'<img src="{data_uri(picture)}" alt="{escape(alt)}" {size}>')


def _tile(tile: Tile | None) -> str:
    if tile is None:
        return '<div class="gap"></div>'
    mark = MARKS.get(tile.mark)
    alt = f"{tile.alt or tile.title}{f', {mark.meaning}' if mark and tile.mark != 'query' else ''}"
    frame = f' style="border-style: {mark.line}; border-color: {mark.colour}"' if mark else ""
    caption = f"<figcaption>{escape(tile.caption)}</figcaption>" if tile.caption else ""
    return f'<figure class="tile">{caption}<div class="frame"{frame}>{image(tile.picture, alt)}</div></figure>'


def blocks(parts: Sequence[Block]) -> Html:
    """The tiles of each block, row by row; rows wrap where the window is narrow."""
    out = []
    for block in parts:
        out.append(heading(4, block.title) if block.title else "")
        labelled = any(row.label for row in block.rows)
        for row in block.rows:
            label = f'<div class="label">{escape(row.label)}</div>' if labelled else ""
            tiles = "".join(map(_tile, row.tiles))
            out.append(f'<div class="row">{label}<div class="tiles">{tiles}</div></div>')
    return Html("\n".join(out))


def legend() -> Html:
    """The meaning of the frames."""
    parts = [
        f'<span style="border: 2px {m.line} {m.colour}; padding: 0 .3rem">{m.symbol or "?"}</span> {escape(m.meaning)}'
        for m in MARKS.values()
    ]
    return Html(f'<p class="soft">{" &nbsp; ".join(parts)}</p>')


def page(title: str, body: Html, style: str = "") -> str:
    """The whole document; `style` is CSS beside the common one."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def write(path: str | Path, title: str, body: Html, style: str = "") -> None:
    """Write the page, whole or not at all."""
    write_text(path, page(title, body, style))
