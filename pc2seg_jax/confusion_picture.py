"""A confusion matrix as an SVG, complete as a file and good inside of a page, whose CSS variables it takes up."""

import html
from collections.abc import Sequence

import numpy as np

_LONGEST_NAME, _LETTER = 18, 6.6  # characters; pixels of one at the size of the names
_MANY = 24  # classes from which on the cells are small
_TURN = 45  # degrees of the names above the columns
_DARK = 0.75  # share from which on a cell's number is white on blue: both have a contrast of 4.4 or more there

# name: (of the page's variable, where there is no page). A page may set them for its light and its dark colours.
_COLORS = {
    "heat": "var(--heat, #0a4a8f)",
    "page": "var(--page, #fff)",
    "empty": "var(--raised, #f5f7f8)",
    "text": "var(--text, #1d2126)",
    "soft": "var(--soft, #5c6670)",
    "rule": "var(--rule, #c9d0d6)",
    "on page": "var(--on-page, #000)",
    "on heat": "var(--on-heat, #fff)",
}


def confusion_svg(confusion: np.ndarray, class_names: Sequence[str]) -> str:
    """Rows in percent of their pixels as coloured cells with numbers, and beside each row its share of all pixels.

    Cells below 0.5 % are blank; the others tell their pixels when pointed at.

    Args:
      confusion: [C, C] integers, rows are the truth, columns the prediction. class_names: C names, in any letters.

    Returns:
      An SVG document with its size in pixels, without an XML declaration, so that it can stand inside of HTML.

    Raises:
      ValueError: when the matrix is not [C, C].
    """
    confusion = np.asarray(confusion, np.int64)
    count = len(class_names)
    if confusion.shape != (count, count):
        raise ValueError(f"a confusion matrix of {count} classes is [{count}, {count}], not {list(confusion.shape)}")
    cell, size = (30, 10.5) if count <= _MANY else (24, 8.5)
    shown = [_shortened(name) for name in class_names]
    longest = max(map(len, shown)) * _LETTER
    left, top = round(longest) + 14, round(0.71 * max(longest, 11 * _LETTER)) + 18
    side, gap = count * cell, 10
    right = left + side + gap + cell
    width = max(right + round(0.71 * longest) + 8, 300)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="confusion" width="{width}" height="{top + side + 46}" '
        f'viewBox="0 0 {width} {top + side + 46}" role="img" aria-label="Confusion matrix" font-size="11.5" '
        'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif">',
        f'<rect width="100%" height="100%" style="fill: {_COLORS["page"]}"/>',
        f'<rect x="{left}" y="{top}" width="{side}" height="{side}" style="fill: {_COLORS["empty"]}"/>',
    ]
    for i, (name, full) in enumerate(zip(shown, class_names, strict=True)):
        middle = (i + 0.5) * cell
        title = f"<title>{html.escape(full)}</title>" if name != full else ""
        parts.append(_text(left - 7, top + middle + 4, title + html.escape(name), "text", anchor="end"))
        parts.append(_turned(left + middle, top - 8, title + html.escape(name), "text"))
    parts.append(_turned(right - cell / 2, top - 8, "of all, %", "soft"))
    parts += _cells(confusion, class_names, (left, top), cell, size)
    for line, y in (
        ("Rows: truth. Columns: prediction.", 20),
        ("Cells: % of the row’s pixels, blank below 0.5.", 36),
    ):
        parts.append(_text(8, top + side + y, line, "soft"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _cells(confusion: np.ndarray, names: Sequence[str], corner: tuple[int, int], cell: int, size: float) -> list[str]:
    """The cells that are worth a number, the column of shares, and outlines on the diagonal."""
    left, top = corner
    pixels = confusion.sum(1)
    squares, light, dark, shares = [], [], [], []
    for i, row in enumerate(confusion / np.maximum(pixels, 1)[:, None]):
        y = top + i * cell
        for j in np.flatnonzero(row >= 0.005).tolist():
            x, share = left + j * cell, float(row[j])
            meaning = html.escape(f"{names[i]} taken for {names[j]}" if i != j else f"{names[i]} found")
            squares.append(
                f'<path d="M{x + 0.5} {y + 0.5}h{cell - 1}v{cell - 1}h{1 - cell}z" fill-opacity="{share:.2f}">'
                f"<title>{meaning}: {100 * share:.1f} %, {confusion[i, j]} pixels</title></path>"
            )
            number = f'<text x="{x + cell / 2:g}" y="{y + cell / 2 + 4:g}">{100 * share:.0f}</text>'
            (dark if share >= _DARK else light).append(number)
        part = f"{100 * pixels[i] / pixels.sum():.1f}" if pixels[i] else "–"
        shares.append(f'<text x="{left + len(row) * cell + 10 + cell / 2:g}" y="{y + cell / 2 + 4:g}">{part}</text>')
    diagonal = "".join(f"M{left + i * cell} {top + i * cell}h{cell}v{cell}h-{cell}z" for i in range(len(names)))
    numbers = f'text-anchor="middle" font-size="{size}" pointer-events="none"'  # it is the square that is pointed at
    return [
        f'<path d="{diagonal}" style="fill: none; stroke: {_COLORS["rule"]}" pointer-events="none"/>',
        f'<g style="fill: {_COLORS["heat"]}">{"".join(squares)}</g>',
        f'<g {numbers} style="fill: {_COLORS["on page"]}">{"".join(light)}</g>',
        f'<g {numbers} style="fill: {_COLORS["on heat"]}">{"".join(dark)}</g>',
        f'<g {numbers} style="fill: {_COLORS["soft"]}">{"".join(shares)}</g>',
    ]


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _text(x: float, y: float, text: str, color: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" style="fill: {_COLORS[color]}">{text}</text>'


def _turned(x: float, y: float, text: str, color: str) -> str:
    place = f'transform="translate({x:g} {y:g}) rotate(-{_TURN})"'
    return f'<text {place} style="fill: {_COLORS[color]}">{text}</text>'
