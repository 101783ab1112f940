"""Charts as inline SVG; colours come from the page's classes s0, s1, ..."""

import html
import itertools
import math
from typing import NamedTuple

COLORS = 6  # of series; the next six are dashed
_MARKERS_UP_TO = 60  # points of a curve that are marked, and tell their value when pointed at
_MOST_POINTS = 300  # of a curve; longer ones are averaged, for the size of the page

Points = list[tuple[float, float]]


class _Frame(NamedTuple):
    """Sizes in pixels of the whole and of its margins. ticks: how many intervals of the vertical axis at least."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    ticks: int

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point of the unit square whose y goes up."""
        across = self.left + x * (self.width - self.left - self.right)
        return across, self.height - self.bottom - y * (self.height - self.top - self.bottom)


_CHART = _Frame(340, 210, 44, 12, 10, 34, 4)
_SMALL = _Frame(170, 104, 36, 8, 8, 18, 2)
_SQUARE = _Frame(300, 356, 44, 12, 10, 90, 4)
_AREA = _Frame(340, 210, 44, 56, 10, 34, 4)


def line_chart(
    title: str, names: list[str], curves: list[Points], *, small: bool = False, top: float = 0, end: float = 0
) -> str:
    """Curves over steps. The vertical axis holds 0, so that heights can be compared.

    Args:
      title: plain text for readers of the page's structure. names, curves: one per run; a curve may be empty.
      small: one of many beside each other, without a title of the axis. top, end: a value and a step that the axes hold
        too, so that charts have the same.
    """
    frame = _SMALL if small else _CHART
    points = [point for curve in curves for point in curve]
    y_ticks = _ticks(min(0, *(y for _, y in points)), max(top, *(y for _, y in points)), frame.ticks)
    x_end, y_low, y_high = max(end, *(x for x, _ in points)), y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return frame.place(x / (x_end or 1), (y - y_low) / (y_high - y_low))

    parts = [*_begin(frame, title), *_heights(frame, {y: place(0, y)[1] for y in y_ticks}), *_steps(frame, x_end)]
    for index, (name, curve) in enumerate(zip(names, curves, strict=True)):
        curve = thinned(curve)
        parts.append(_curve(series(index), name, curve, [place(*point) for point in curve]))
    return "".join([*parts, "</svg>"])


def reliability_chart(names: list[str], calibrations: list[list[dict]]) -> str:
    """Accuracy over confidence in percent, with the diagonal of a perfect calibration; below it the pixels' shares.

    Args:
      names, calibrations: one per run; of a bin "confidence" and "accuracy" (None where it is empty) and "share", 0..1.
    """
    frame = _SQUARE
    parts = [*_begin(frame, "Reliability diagram")]
    parts += _heights(frame, {percent: frame.place(0, percent / 100)[1] for percent in range(0, 101, 20)})
    floor, depth = frame.height - 40, 36
    for percent in range(0, 101, 20):
        x = frame.place(percent / 100, 0)[0]
        parts.append(f'<text x="{x:.1f}" y="{floor + 14}" text-anchor="middle">{percent}</text>')
    (x0, y0), (x1, y1) = frame.place(0, 0), frame.place(1, 1)
    parts.append(f'<path class="diagonal" d="M{x0} {y0}L{x1} {y1}"/><path class="grid" d="M{x0} {floor}H{x1}"/>')
    parts.append(f'<text x="{(x0 + x1) / 2}" y="{floor + 32}" text-anchor="middle">confidence, %</text>')
    parts.append(f'<text x="{x0 - 6}" y="{floor - depth + 8}" text-anchor="end">pixels</text>')
    highest = max((b["share"] for bins in calibrations for b in bins), default=0) or 1
    for index, (name, bins) in enumerate(zip(names, calibrations, strict=True)):
        found = [b for b in bins if b["confidence"] is not None and b["accuracy"] is not None]
        places = [frame.place(b["confidence"], b["accuracy"]) for b in found]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line {series(index)}" points="{line}"/>')
        for b, (x, y) in zip(found, places, strict=True):
            label = html.escape(
                f"{name}: {100 * b['share']:.1f} % of the pixels, {100 * b['confidence']:.1f} % sure, "
                f"{100 * b['accuracy']:.1f} % right"
            )
            parts.append(
                f'<circle class="{series(index)}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{label}</title></circle>'
            )
        outline = [f"M{x0} {floor}"]
        for b in bins:
            height = floor - depth * b["share"] / highest
            outline.append(f"L{frame.place(b['low'], 0)[0]:.1f} {height:.1f}H{frame.place(b['high'], 0)[0]:.1f}")
        parts.append(f'<path class="line {series(index)}" d="{"".join(outline)}V{floor}"/>')
    return "".join([*parts, "</svg>"])


def area_chart(
    title: str, names: list[str], colors: list[str], curves: list[Points], reference: list[float] | None
) -> str:
    """Shares over steps, in percent, one class on top of the other, the first at the bottom.

    Args:
      names, colors, curves: one per class, shares 0..1; the curves hold the same steps.
      reference: true shares 0..1, a bar at the right; or None.
    """
    frame = _AREA
    curves = [thinned(curve) for curve in curves]
    steps = [step for step, _ in curves[0]]
    x_end = steps[-1] or 1
    parts = [*_begin(frame, title), *_steps(frame, x_end)]
    levels = list(itertools.accumulate(([y for _, y in curve] for curve in curves), _added, initial=[0.0] * len(steps)))
    marks = [0.0, *itertools.accumulate(reference)] if reference else []
    left, right = frame.width - frame.right + 22, frame.width - frame.right + 38
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        below, above = (
            [frame.place(step / x_end, min(y, 1)) for step, y in zip(steps, level, strict=True)]
            for level in levels[i : i + 2]
        )
        outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in (*below, *reversed(above)))
        label = html.escape(f"{name}: {100 * curves[i][0][1]:.1f} % first, {100 * curves[i][-1][1]:.1f} % last")
        parts.append(f'<polygon class="area" points="{outline}" style="fill: {color}"><title>{label}</title></polygon>')
        if reference:
            low, high = (frame.place(0, min(y, 1))[1] for y in marks[i : i + 2])
            truth = html.escape(f"{name}: {100 * reference[i]:.1f} % of val")
            parts.append(
                f'<path class="area" d="M{left} {low:.1f}H{right}V{high:.1f}H{left}z" style="fill: {color}">'
                f"<title>{truth}</title></path>"
            )
    if reference:
        parts.append(
            f'<text x="{(left + right) / 2}" y="{frame.height - 18}" text-anchor="middle">val</text>'
            f'<text x="{(left + right) / 2}" y="{frame.height - 4}" text-anchor="middle">truth</text>'
        )
    parts += _heights(frame, {percent: frame.place(0, percent / 100)[1] for percent in range(0, 101, 25)}, lines=False)
    return "".join([*parts, "</svg>"])


def _added(below: list[float], values: list[float]) -> list[float]:
    return [x + y for x, y in zip(below, values, strict=True)]


def series(index: int) -> str:
    """The page's classes of a run's colour."""
    return f"s{index % COLORS}" + (" dashed" if index // COLORS % 2 else "")


def thinned(curve: Points) -> Points:
    """At most `_MOST_POINTS` points: means of as many neighbours as it takes, the last one of those that are left."""
    size = -(-len(curve) // _MOST_POINTS)
    groups = [curve[i : i + size] for i in range(0, len(curve), size)] if size > 1 else [[point] for point in curve]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _begin(frame: _Frame, title: str) -> list[str]:
    return [f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{html.escape(title)}">']


def _heights(frame: _Frame, places: dict[float, float], *, lines: bool = True) -> list[str]:
    """Numbers, and lines across, of the vertical axis: {value: pixel}."""
    parts = []
    for value, y in places.items():
        if lines:
            parts.append(f'<path class="grid" d="M{frame.left} {y:.1f}H{frame.width - frame.right}"/>')
        parts.append(f'<text x="{frame.left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{value:g}</text>')
    return parts


def _steps(frame: _Frame, end: float) -> list[str]:
    """The horizontal axis, 0..end; where there is little room, its end alone."""
    if frame is _SMALL:
        x = frame.width - frame.right
        return [f'<text x="{x}" y="{frame.height - 4}" text-anchor="end">{end:g}</text>']
    ticks = [tick for tick in _ticks(0, end) if tick <= end]
    parts = [
        f'<text x="{frame.place(tick / (end or 1), 0)[0]:.1f}" y="{frame.height - 18}" '
        f'text-anchor="middle">{tick:g}</text>'
        for tick in ticks
    ]
    middle = frame.place(0.5, 0)[0]
    return [*parts, f'<text x="{middle}" y="{frame.height - 4}" text-anchor="middle">step</text>']


def _curve(style: str, name: str, curve: Points, places: Points) -> str:
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline class="line {style}" points="{line}"/>']
    if len(curve) <= _MARKERS_UP_TO:
        for (step, value), (x, y) in zip(curve, places, strict=True):
            label = html.escape(f"{name}, step {step}: {value:.4g}")
            parts.append(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"><title>{label}</title></circle>')
    return "".join(parts)


def _ticks(low: float, high: float, intervals: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that enclose low..high, for 4 intervals three to seven of them."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / intervals))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * intervals * 1.0003 >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]
