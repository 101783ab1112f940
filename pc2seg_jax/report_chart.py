"""A line chart as inline SVG; colours come from the page's classes s0, s1, ..."""

import html
import math

COLORS = 6
_WIDTH, _HEIGHT = 340, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 34
_MARKERS_UP_TO = 60  # points of a curve that are marked, and tell their value when pointed at

Points = list[tuple[float, float]]


def line_chart(title: str, names: list[str], curves: list[Points]) -> str:
    """Curves over steps. The vertical axis holds 0, so that heights can be compared.

    Args:
      title: plain text for readers of the page's structure. names, curves: one per run; a curve may be empty.
    """
    points = [point for curve in curves for point in curve]
    x_ticks = _ticks(0, max(x for x, _ in points))
    y_ticks = _ticks(min(0, *(y for _, y in points)), max(0, *(y for _, y in points)))
    x_end, y_low, y_high = max(x for x, _ in points), y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + x / (x_end or 1) * (_WIDTH - _LEFT - _RIGHT)
        return across, _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    for y in y_ticks:
        height = place(0, y)[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {height:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{height + 3.5:.1f}" text-anchor="end">{y:g}</text>')
    for x in x_ticks:
        if x <= x_end:
            parts.append(f'<text x="{place(x, 0)[0]:.1f}" y="{_HEIGHT - 18}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">step</text>')
    for index, (name, curve) in enumerate(zip(names, curves, strict=True)):
        parts.append(_curve(f"s{index % COLORS}", name, curve, [place(*point) for point in curve]))
    return "".join([*parts, "</svg>"])


def _curve(style: str, name: str, curve: Points, places: Points) -> str:
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline class="line {style}" points="{line}"/>']
    if len(curve) <= _MARKERS_UP_TO:
        for (step, value), (x, y) in zip(curve, places, strict=True):
            label = html.escape(f"{name}, step {step}: {value:.4g}")
            parts.append(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"><title>{label}</title></circle>')
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven multiples of 1, 2 or 5 times a power of ten that enclose low..high."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 4.001 >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]
