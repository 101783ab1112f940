"""The numbers of the report as markup: results, classes, configurations, protocol, machines."""

import math

from pc2seg_jax import reporting
from pc2seg_jax.report_markup import (
    bar_cell,
    css_color,
    details,
    emphasised,
    key,
    run_color,
    run_key,
    run_titles,
    signed,
    table,
    text,
)
from pc2seg_jax.reporting import Record

_ALWAYS = {"training minutes", "images/s", "hardware"}  # facts that are "-" where no run tells; others go


def results(records: list[Record]) -> str:
    """The headline and its facts, one column for each run."""
    rows = [reporting.headline(record) for record in records]
    facts = []
    for title in list(rows[0])[1:]:  # the name is the column's title
        values = [row[title] for row in rows]
        cells = [text(value) for value in values]
        if title == "val mIoU %":
            cells = emphasised([record.last["miou"] for record in records])
        if title in _ALWAYS or any(value != "-" for value in values):
            facts.append([text(title), *cells])
    notes = []
    if any(reporting.interval(record.last) for record in records):
        notes.append(
            "The interval is a bootstrap over the val images: how far the number moves with other images of the kind."
        )
    if len(records) > 1:
        notes.append(
            "Each run is a single one: a difference between two of them includes the effect of their random numbers."
        )
    headline = _number(records[0]) if len(records) == 1 else _scale(records)
    note = f'<p class="soft">{text(" ".join(notes))}</p>' if notes else ""
    return headline + note + _differences(records) + table(["", *run_titles(records)], facts, kind="text")


def _differences(records: list[Record]) -> str:
    """Of every run to the first; "" where they are not known."""
    names, rows = run_titles(records), []
    for name, row in zip(names, reporting.differences(records), strict=False):
        if found := row.get("difference"):
            spans = [_span(found["miou"], found["interval"]), _span(found["per_image"], found["per_image_interval"])]
            rows.append([name, *spans, f"{found['better']} / {found['worse']}"])
    if not rows:
        return ""
    note = (
        f"Differences to {records[0].name} in points of mIoU, of all pixels and of the mean image, each with its "
        "95\u00a0% interval. They are paired: both runs are judged by the same resampled images, so these intervals "
        "tell more than whether those above overlap."
    )
    titles = ["", "all pixels", "mean image", "better / worse"]
    return f'<p class="soft">{text(note)}</p>' + table(titles, rows, numbers_from=1, kind="cards")


def _span(value: float | None, interval: list[float | None]) -> str:
    if value is None or None in interval:
        return "-"
    low, high = (signed(x, 1) for x in interval)
    return f'<b>{signed(value)}</b> <span class="soft">{low} to {high}</span>'


def _number(record: Record) -> str:
    interval = reporting.interval(record.last)
    spread = f"95 % interval {interval[0]:.1f} to {interval[1]:.1f} %" if interval else ""
    meaning = f"mIoU on val, step {record.run.step}"
    return (
        f'<p class="hero"><b>{record.last["miou"]:.1f} %</b> <span>{text(meaning)}'
        + (f'<br><span class="soft">{text(spread)}</span>' if spread else "")
        + "</span></p>"
    )


def _scale(records: list[Record]) -> str:
    """The runs' numbers and intervals on one scale, whose ends are multiples of 5 %."""
    mious = [record.last["miou"] for record in records]
    intervals = [reporting.interval(record.last) or (record.last["miou"],) * 2 for record in records]
    low = max(0, 5 * math.floor(min(begin for begin, _ in intervals) / 5 - 0.1))
    high = min(100, 5 * math.ceil(max(end for _, end in intervals) / 5 + 0.1))
    rows = []
    for index, (record, miou, interval) in enumerate(zip(records, mious, intervals, strict=True)):
        begin, end, dot = (100 * (value - low) / (high - low) for value in (*interval, miou))
        spread = ' <span class="soft">{:.1f} to {:.1f}</span>'.format(*interval) if end > begin else ""
        rows.append(
            f"<div><span>{run_key(index)}{text(record.name)}</span>"
            f'<span class="track" style="color: {run_color(index)}">'
            f'<span class="band" style="left: {begin:.1f}%; width: {end - begin:.1f}%"></span>'
            f'<span class="dot" style="left: {dot:.1f}%"></span></span>'
            f'<span class="value"><b>{miou:.2f}</b>{spread}</span></div>'
        )
    ends = f"<span>{low:g} %</span><span>mIoU on val</span><span>{high:g} %</span>"
    return f'<div class="intervals">{"".join(rows)}<div><span class="ends soft">{ends}</span></div></div>'


def classes(records: list[Record]) -> str:
    """IoU per class, and where a run has it that of the boundaries."""
    info = records[0].run.info

    def block(title: str, per_class: str, mean: str) -> str:
        def row(head: str, values: list[float | None]) -> list[str]:
            cells = zip(emphasised(values), values, strict=True)
            return [head, *(bar_cell(number, value, run) for run, (number, value) in enumerate(cells))]

        rows = [
            row(key(css_color(info.palette[i])) + text(name), [record.last[per_class].get(name) for record in found])
            for i, name in enumerate(info.class_names)
        ]
        rows.append(row("mean", [record.last[mean] for record in found]))
        titles = ["class", *(run_titles(found) if len(records) > 1 else [title])]
        return f"<div><h3>{title} per class, %</h3>{table(titles, rows, numbers_from=1)}</div>"

    found = records
    blocks = [block("IoU", "iou", "miou")]
    found = [record for record in records if "boundary_iou" in record.last]
    if found:
        blocks.append(block("Boundary IoU", "boundary_iou", "boundary_miou"))
    return f'<div class="beside">{"".join(blocks)}</div>'


def configurations(records: list[Record]) -> str:
    """The keys in which runs differ, and all of every run where one asks for them."""
    parts = []
    if len(records) > 1:
        rows = [
            [f"<code>{text(name)}</code>", *(f"<code>{text(value)}</code>" for value in values)]
            for name, values in reporting.config_differences(records).items()
        ]
        same = "<p>The configurations are the same.</p>"
        differ = "<h3>Keys in which the configurations differ</h3>"
        parts.append(differ + table(["key", *run_titles(records)], rows, kind="text") if rows else same)
    for record in records:
        lines = "\n".join(f"{name} = {value!r}" for name, value in sorted(record.config.items()))
        parts.append(details(f"Full configuration of {record.name}", f"<pre>{text(lines)}</pre>"))
    return "".join(parts)


def protocol(records: list[Record]) -> str:
    """How was evaluated, and which images every run has seen."""
    lines = {}
    for record in records:
        lines.setdefault(_protocol_line(record.last["protocol"]), []).append(record.name)
    texts = [line if len(lines) == 1 else f"{', '.join(names)}: {line}" for line, names in lines.items()]
    users = {}
    for record in records:
        for role, split in record.run.info.splits.items():
            users.setdefault((role, split), []).append(record.name)
    several = len(records) > 1
    rows = [
        [
            text(role),
            text(split.name),
            str(split.count),
            *([text(", ".join(names))] if several else []),
            f"<code>{text(split.sha256)}</code>",
        ]
        for (role, split), names in sorted(users.items())
    ]
    titles = ["split", "list", "images", *(["runs"] if several else []), "SHA-256 of the ids"]
    return "".join(f"<p>{text(line)}</p>" for line in texts) + table(titles, rows, kind="cards")


def _protocol_line(stored: dict) -> str:
    height, width = stored["size"]
    return (
        "mIoU: mean over classes of intersection over union, from one confusion matrix of all pixels. "
        f"Resize: {stored['resize']} to {height}x{width} (height x width). "
        f"Scales: {', '.join(map(str, stored['scales']))}. Flip: {'yes' if stored['flip'] else 'no'}. "
        + (f"Windows: {stored['window']}x{stored['window']}. " if stored.get("window") else "")
        + (f"Interval: {stored['interval']}. " if "interval" in stored else "")
        + f"Pixels with id {stored['ignore_id']} are not counted. "
        f"Classes without a pixel: {stored['absent_classes']}."
    )


def machines(records: list[Record]) -> str:
    """What every start of a run has noted. A run that was never interrupted has one."""
    rows, silent = [], []
    for record in records:
        found = reporting.starts(record)
        if not found:
            silent.append(record.name)
        for start in found:
            versions = ", ".join(f"{name} {version}" for name, version in start["versions"].items())
            rows.append([record.name, start["step"], start["started"], start["hardware"], versions])
    titles = ["run", "from step", "started", "hardware", "versions"]
    note = f"{', '.join(silent)}: trained by a version that did not note them." if silent else ""
    return (table(titles, [list(map(text, row)) for row in rows], kind="cards") if rows else "") + (
        f"<p>{text(note)}</p>" if note else ""
    )
