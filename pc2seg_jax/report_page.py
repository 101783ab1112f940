"""The report as one self-contained HTML page: no scripts, nothing fetched, every value escaped."""

import base64
import html
import io
import pathlib

import numpy as np
from PIL import Image

from pc2seg_jax import reporting
from pc2seg_jax.errors import UserError
from pc2seg_jax.report_chart import COLORS, line_chart
from pc2seg_jax.reporting import Picture, Record

_LONGEST_SIDE = 384  # pixels of an embedded picture
_CURVES = {
    "val/miou": "mIoU on val, %",
    "loss": "Loss: weighted sum of its parts",
    "loss/supervised": "Cross-entropy, labelled pixels",
    "loss/consistency": "Consistency, unlabelled pixels",
    "loss/contrast": "Contrast, unlabelled pixels",
}
_PRINTED = ("run", "labelled images", "steps", "images per step", "val mIoU %", "training minutes")

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1d2126; --soft: #5c6670; --rule: #d9dee3; --raised: #f5f7f8;
  --s0: #0072b2; --s1: #c8500a; --s2: #008060; --s3: #a8488a; --s4: #7a6a00; --s5: #50565c; }
@media (prefers-color-scheme: dark) { :root { --page: #15181b; --text: #e4e7ea; --soft: #9aa4ad; --rule: #343a40;
  --raised: #1d2125; --s0: #56b4e9; --s1: #f28e4b; --s2: #35c79a; --s3: #dd9ac6; --s4: #d6c544; --s5: #aab1b8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1120px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: .9rem; font-weight: 600; margin: 0 0 .25rem; }
p { margin: .25rem 0 .75rem; max-width: 90ch; } .soft, figcaption, svg text { color: var(--soft); fill: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1.25rem .35rem 0; text-align: left; vertical-align: bottom; white-space: nowrap;
  border-bottom: 1px solid var(--rule); }
thead th { color: var(--soft); font-weight: 500; white-space: normal; } tbody th { font-weight: 500; }
.number { text-align: right; } td b { font-weight: 700; } code { font-size: .92em; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border: 1px solid var(--rule); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .5rem 0 .75rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 1.25rem; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 10.5px; }
.grid { stroke: var(--rule); fill: none; } .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.pictures td, .pictures th { border: 0; padding: 0 .6rem .6rem 0; vertical-align: top; white-space: normal; }
.pictures thead th { vertical-align: bottom; } figure { margin: 0; } figcaption { font-size: .8rem; }
.pictures img { display: block; width: clamp(110px, 17vw, 190px); border: 1px solid var(--rule); }
.mask { image-rendering: pixelated; }
.ignored { background: repeating-linear-gradient(45deg, #b0b0b0 0 3px, #d8d8d8 3px 6px); }
@media print { h2 { break-after: avoid; } tr, figure { break-inside: avoid; } }
"""
_SERIES = "".join(f".s{i} {{ stroke: var(--s{i}); }} circle.s{i} {{ fill: var(--s{i}); }} " for i in range(COLORS))


def write_report(workdirs: list[pathlib.Path], output: pathlib.Path, images: int) -> str:
    """Writes the report of runs to `output` and returns its main numbers as a text table.

    Raises:
      UserError: when `output` cannot be the file, or the runs cannot be compared (see `reporting.read_records`).
    """
    if output.suffix != ".html" or output.is_dir():
        raise UserError(f"--output={output} is not a file that ends in .html: name one, e.g. report.html")
    if not workdirs:
        raise UserError("--runs is empty: name the folders of one or more runs, separated by commas")
    records = reporting.read_records(workdirs)
    page = render(records, reporting.make_pictures(records, images))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    rows = [reporting.headline(record) for record in records]
    return reporting.text_table([{title: row[title] for title in _PRINTED} for row in rows])


def render(records: list[Record], pictures: list[Picture]) -> str:
    """The whole page."""
    names = [record.name for record in records]
    title = "Segmentation runs: " + ", ".join(names) if len(names) > 1 else f"Segmentation run: {names[0]}"
    val = records[0].run.info.splits["val"]
    intro = f"Evaluated on {val.count} images of {val.name}; numbers are those of each run's latest checkpoint."
    sections = [
        f"<h1>{_text(title)}</h1><p class=soft>{_text(intro)}</p>",
        _results(records),
        _classes(records),
        _curves(records),
        _pictures(records, pictures),
        _configurations(records),
        _protocol(records),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}{_SERIES}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _table(titles: list[str], rows: list[list[str]], *, numbers_from: int) -> str:
    """A table of cells that are HTML already; columns from `numbers_from` on are set as numbers."""
    kind = [' class="number"' if i >= numbers_from else "" for i in range(len(titles))]
    head = "".join(f"<th{k}>{title}</th>" for k, title in zip(kind, titles, strict=True))
    body = []
    for first, *rest in rows:
        cells = "".join(f"<td{k}>{cell}</td>" for k, cell in zip(kind[1:], rest, strict=True))
        body.append(f"<tr><th>{first}</th>{cells}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _results(records: list[Record]) -> str:
    rows = [reporting.headline(record) for record in records]
    mious = _emphasised([record.last["miou"] for record in records])
    for row, miou in zip(rows, mious, strict=True):
        row["val mIoU %"] = miou
    cells = [[text if key == "val mIoU %" else _text(text) for key, text in row.items()] for row in rows]
    note = "Each row is a single run: a difference between two of them includes the effect of their random numbers."
    return (
        "<h2>Results</h2>"
        + _table([_text(title) for title in rows[0]], cells, numbers_from=2)
        + (f"<p class=soft>{note}</p>" if len(records) > 1 else "")
    )


def _emphasised(values: list[float | None]) -> list[str]:
    """Values in percent with the highest in bold, where they differ as shown."""
    texts = ["absent" if value is None else f"{value:.2f}" for value in values]
    shown = {float(text) for text in texts if text != "absent"}
    best = f"{max(shown):.2f}" if len(shown) > 1 else None
    return [f"<b>{text}</b>" if text == best else text for text in texts]


def _classes(records: list[Record]) -> str:
    info = records[0].run.info
    rows = [
        [_key(info.palette[i]) + _text(name), *_emphasised([record.last["iou"][name] for record in records])]
        for i, name in enumerate(info.class_names)
    ]
    rows.append(["mean", *_emphasised([record.last["miou"] for record in records])])
    titles = ["class", *(_text(record.name) for record in records)]
    return "<h2>IoU per class, %</h2>" + _table(titles, rows, numbers_from=1)


def _key(color: list[int]) -> str:
    return f'<span class="key" style="background: rgb({color[0]}, {color[1]}, {color[2]})"></span>'


def _curves(records: list[Record]) -> str:
    names = [record.name for record in records]
    charts = []
    for key, title in _CURVES.items():
        curves = [reporting.curve(record, key) for record in records]
        if any(curves):
            charts.append(f"<div><h3>{_text(title)}</h3>{line_chart(title, names, curves)}</div>")
    keys = "".join(
        f'<span><span class="key" style="background: var(--s{i % COLORS})"></span>{_text(name)}</span>'
        for i, name in enumerate(names)
    )
    if not charts:
        return "<h2>Learning curves</h2><p>The runs hold no metrics.jsonl.</p>"
    return f'<h2>Learning curves</h2><div class="legend">{keys}</div><div class="charts">{"".join(charts)}</div>'


def _pictures(records: list[Record], pictures: list[Picture]) -> str:
    if not pictures:
        return ""
    info = records[0].run.info
    keys = "".join(f"<span>{_key(info.palette[i])}{_text(name)}</span>" for i, name in enumerate(info.class_names))
    keys += '<span><span class="key ignored"></span>not counted</span>'
    titles = "".join(f"<th>{_text(title)}</th>" for title in ("image", "truth", *(record.name for record in records)))
    names = [f"prediction of {record.name}" for record in records]
    palette = np.asarray(info.palette, np.uint8)
    rows = "".join(_picture_row(picture, names, palette, info.ignore_id) for picture in pictures)
    note = (
        "Spread evenly over the val list, not selected. Below a prediction: the share of counted pixels it has right."
    )
    return (
        f'<h2>Predictions on val</h2><p class=soft>{note}</p><div class="legend">{keys}</div>'
        f'<div class="wide"><table class="pictures"><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _picture_row(picture: Picture, names: list[str], palette: np.ndarray, ignore_id: int) -> str:
    ignored = picture.truth == ignore_id
    cells = [_figure(_shrunk(picture.image, Image.Resampling.BILINEAR), picture.name, picture.name, "image")]
    for ids, meaning in zip((picture.truth, *picture.predictions), ("truth", *names), strict=True):
        counted = (ids == picture.truth)[~ignored]
        caption = "" if ids is picture.truth or not counted.size else f"{100 * counted.mean():.1f} %"
        mask = _shrunk(_painted(ids, ignored, palette), Image.Resampling.NEAREST)
        cells.append(_figure(mask, f"{meaning}, {picture.name}", caption, "mask"))
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _painted(ids: np.ndarray, ignored: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Class colours, [h, w, 3]; ignored pixels are hatched in grey, which no palette holds."""
    y, x = np.indices(ids.shape)
    hatch = np.where((x + y) // 4 % 2, 176, 216)[..., None]
    return np.where(ignored[..., None], hatch, palette[ids]).astype(np.uint8)


def _shrunk(pixels: np.ndarray, resampling: Image.Resampling) -> Image.Image:
    image = Image.fromarray(pixels)
    factor = min(1, _LONGEST_SIDE / max(image.size))
    size = tuple(max(1, round(side * factor)) for side in image.size)
    return image if size == image.size else image.resize(size, resampling)


def _figure(image: Image.Image, meaning: str, caption: str, kind: str) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    caption = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return f'<figure><img class="{kind}" alt="{_text(meaning)}" src="data:image/png;base64,{data}">{caption}</figure>'


def _configurations(records: list[Record]) -> str:
    if len(records) == 1:
        return ""
    rows = [
        [f"<code>{_text(key)}</code>", *(f"<code>{_text(value)}</code>" for value in values)]
        for key, values in reporting.config_differences(records).items()
    ]
    titles = ["key", *(_text(record.name) for record in records)]
    body = _table(titles, rows, numbers_from=len(titles)) if rows else "<p>The configurations are the same.</p>"
    return "<h2>Keys in which the configurations differ</h2>" + body


def _protocol(records: list[Record]) -> str:
    lines = {}
    for record in records:
        lines.setdefault(_protocol_line(record.last["protocol"]), []).append(record.name)
    texts = [line if len(lines) == 1 else f"{', '.join(names)}: {line}" for line, names in lines.items()]
    users = {}
    for record in records:
        for role, split in record.run.info.splits.items():
            users.setdefault((role, split), []).append(record.name)
    rows = [
        [_text(role), _text(split.name), _text(", ".join(names)), f"<code>{split.sha256}</code>", str(split.count)]
        for (role, split), names in sorted(users.items())
    ]
    titles = ["split", "name", "runs", "SHA-256 of the ids, in order", "images"]
    return (
        "<h2>Protocol and data</h2>"
        + "".join(f"<p>{_text(text)}</p>" for text in texts)
        + _table(titles, rows, numbers_from=4)
    )


def _protocol_line(protocol: dict) -> str:
    height, width = protocol["size"]
    return (
        "mIoU: mean over classes of intersection over union, from one confusion matrix of all pixels. "
        f"Resize: {protocol['resize']} to {height}x{width} (height x width). "
        f"Scales: {', '.join(map(str, protocol['scales']))}. Flip: {'yes' if protocol['flip'] else 'no'}. "
        f"Pixels with id {protocol['ignore_id']} are not counted. "
        f"Classes without a pixel: {protocol['absent_classes']}."
    )
