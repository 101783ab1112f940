"""Pieces of the report's page. What comes in as text goes out escaped; what comes in as markup says so."""

import base64
import html
import io

import numpy as np
from PIL import Image

from pc2seg_jax.report_chart import COLORS
from pc2seg_jax.reporting import Record

_SMALL = 200  # pixels up to which a photo is shown enlarged, and must be exact


def text(value: object) -> str:
    """Any value as markup."""
    return html.escape(str(value))


def table(titles: list[str], rows: list[list[str]], *, numbers_from: int | None = None, kind: str = "") -> str:
    """A table in a box of its own, which scrolls where the page is narrower.

    Args:
      titles, rows: markup; a cell may begin with "<td". numbers_from: column from which on cells are numbers.
      kind: "text" where cells may break into lines, "cards" where a phone shows every row as a list below its first
        cell, for which the titles must be text.
    """
    first_number = len(titles) if numbers_from is None else numbers_from
    kinds = [' class="number"' if i >= first_number else "" for i in range(len(titles))]
    names = [f' data-title="{title}"' if kind == "cards" else "" for title in titles]
    head = "".join(f"<th{k}>{title}</th>" for k, title in zip(kinds, titles, strict=True))
    body = []
    for first, *rest in rows:
        if kind == "cards":
            rest = [f"<span>{cell}</span>" for cell in rest]
        cells = "".join(
            cell if cell.startswith("<td") else f"<td{k}{name}>{cell}</td>"
            for k, name, cell in zip(kinds[1:], names[1:], rest, strict=True)
        )
        body.append(f"<tr><th>{first}</th>{cells}</tr>")
    style = f' class="{kind}"' if kind else ""
    return f'<div class="wide"><table{style}><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def bar_cell(content: str, percent: float | None, run: int) -> str:
    """A number with a bar below it. content: markup. percent: None for no bar. run: whose colour."""
    if percent is None:
        return f'<td class="number soft">{content}</td>'
    return f'<td class="number bar" style="--v: {percent:.1f}; --c: {run_color(run)}">{content}</td>'


def run_color(run: int) -> str:
    return f"var(--s{run % COLORS})"


def run_titles(records: list[Record]) -> list[str]:
    """The runs' names as markup, where there are several with their colours."""
    marks = [run_key(i) if len(records) > 1 else "" for i in range(len(records))]
    return [mark + text(record.name) for mark, record in zip(marks, records, strict=True)]


def emphasised(values: list[float | None]) -> list[str]:
    """Values in percent as markup, the highest in bold, where they differ as shown."""
    texts = ["absent" if value is None else f"{value:.2f}" for value in values]
    shown = {float(text) for text in texts if text != "absent"}
    best = f"{max(shown):.2f}" if len(shown) > 1 else None
    return [f"<b>{text}</b>" if text == best else text for text in texts]


def signed(value: float, digits: int = 2) -> str:
    """With a plus or a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def css_color(color: list[int]) -> str:
    return f"rgb({color[0]}, {color[1]}, {color[2]})"


def key(color: str) -> str:
    """A small square. color: of CSS."""
    return f'<span class="key" style="background: {color}"></span>'


def run_key(run: int) -> str:
    """The square of a run's colour, hollow where its lines are dashed."""
    hollow = f"background: none; border: 2px dashed {run_color(run)}"
    return f'<span class="key" style="{hollow}"></span>' if run // COLORS % 2 else key(run_color(run))


def legend(entries: list[tuple[str, str]]) -> str:
    """entries: (markup of the key, text)."""
    return '<div class="legend">' + "".join(f"<span>{mark}{text(name)}</span>" for mark, name in entries) + "</div>"


def details(summary: str, content: str) -> str:
    """Something that is shown when asked for. content: markup."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def shrunk(image: Image.Image, side: int, resampling: Image.Resampling) -> Image.Image:
    """The image with its longer side at most `side`."""
    factor = min(1, side / max(image.size))
    size = tuple(max(1, round(length * factor)) for length in image.size)
    return image if size == image.size else image.resize(size, resampling)


def photo(pixels: np.ndarray, meaning: str, caption: str, side: int, *, sharp: bool = False) -> str:
    """A figure as JPEG. pixels: [h, w, 3] uint8. sharp: with small coloured marks, which must not be blurred."""
    image = shrunk(Image.fromarray(pixels), side, Image.Resampling.LANCZOS)
    small = max(image.size) <= _SMALL
    options = {"quality": 90 if small else 82, "subsampling": 0 if small or sharp else 2}
    return _figure(image, meaning, caption, "photo", "JPEG", **options)


def mask(ids: np.ndarray, hatched: np.ndarray, palette: np.ndarray, meaning: str, caption: str, side: int) -> str:
    """A figure of class colours as palette PNG, hatched in grey, which no palette holds, where asked for.

    Args:
      ids: [h, w] classes. hatched: [h, w] bool. palette: [256, 3] uint8 with at most 254 classes' colours.
    """
    images = [shrunk(Image.fromarray(x.astype(np.uint8)), side, Image.Resampling.NEAREST) for x in (ids, hatched)]
    small, grey = (np.asarray(image) for image in images)
    y, x = np.indices(small.shape)
    image = Image.fromarray(np.where(grey, 254 + (x + y) // 4 % 2, np.minimum(small, 253)).astype(np.uint8))
    image.putpalette(np.concatenate([palette[:254], [[176] * 3, [216] * 3]]).astype(np.uint8).tobytes())
    used = [i for i, count in enumerate(image.histogram()) if count]
    image = image.remap_palette(used)  # as few colours as there are, for as few bits
    return _figure(image, meaning, caption, "mask", "PNG", optimize=True)


def _figure(image: Image.Image, meaning: str, caption: str, kind: str, form: str, **options) -> str:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    data = base64.b64encode(stream.getvalue()).decode()
    caption = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><img class="{kind}" alt="{text(meaning)}" width="{image.width}" height="{image.height}" '
        f'src="data:image/{form.lower()};base64,{data}">{caption}</figure>'
    )
