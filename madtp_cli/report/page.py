"""A page that stands alone: one HTML document without scripts, without requests, for light, dark and paper."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from madtp_cli.report.kept_tokens import Pixels
from madtp_cli.report.plots import Plot

STYLE = Path(__file__).with_name("report.css")
# Whatever the page holds, a browser that reads this loads nothing from anywhere.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_QUALITY = 80


def page(title: str, sections: Iterable[str]) -> str:
    """Return the document of sections that are HTML already."""
    head = (
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>",
    )
    body = "\n".join(part for part in sections if part)
    return "\n".join(
        ("<!DOCTYPE html>", '<html lang="en">', "<head>", *head, "</head>", "<body>", body, "</body>", "</html>\n")
    )


def section(title: str, *parts: str) -> str:
    """Return a section with its heading; nothing where no part says anything."""
    said = [part for part in parts if part]
    return "\n".join(("<section>", f"<h2>{escape(title)}</h2>", *said, "</section>")) if said else ""


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f"<p{_class(kind)}>{escape(text)}</p>" if text else ""


def code(text: str) -> str:
    """Return a block of code."""
    return f"<pre><code>{escape(text)}</code></pre>"


def folded(summary: str, *parts: str) -> str:
    """Return what is shown once it is asked for."""
    return "\n".join((f"<details><summary>{escape(summary)}</summary>", *parts, "</details>"))


def facts(values: Mapping[str, str]) -> str:
    """Return names and their values, those that have one."""
    rows = [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in values.items() if value]
    return "\n".join(('<dl class="facts">', *rows, "</dl>"))


def cards(values: Iterable[tuple[str, str, str, str]]) -> str:
    """Return figures to be seen first: name, value, what it is compared with, and its kind (good, bad or none)."""
    each = [
        f'<dl class="card"><dt>{escape(name)}</dt><dd{_class(kind)}>{escape(value)}</dd><dd>{escape(note)}</dd></dl>'
        for name, value, note, kind in values
    ]
    return "\n".join(('<div class="cards">', *each, "</div>"))


def table(caption: str, header: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return a table whose rows are a kind (a CSS class, or none) and cells; the first names the row."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    lines = []
    for kind, (name, *cells) in rows:
        values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr{_class(kind)}><th scope="row">{escape(name)}</th>{values}</tr>')
    return "\n".join(
        (
            f'<div class="wide"><table><caption>{escape(caption)}</caption>',
            f"<thead><tr>{heads}</tr></thead>",
            "<tbody>",
            *lines,
            "</tbody></table></div>",
        )
    )


def figures(plots: Iterable[Plot | None]) -> str:
    """Return plots side by side, each with its title and what it shows in words."""
    each = [
        f'<figure role="group" aria-label="{escape(plot.title)}"><h3>{escape(plot.title)}</h3>\n{plot.svg}\n'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
        for plot in plots
        if plot is not None
    ]
    return "\n".join(('<div class="plots">', *each, "</div>")) if each else ""


def picture(pixels: Pixels, alt: str) -> str:
    """Return an image that is in the page itself."""
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, format="WEBP", quality=_QUALITY)
    data = base64.b64encode(packed.getvalue()).decode("ascii")
    height, width = pixels.shape[:2]
    return f'<img src="data:image/webp;base64,{data}" alt="{escape(alt)}" width="{width}" height="{height}">'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
