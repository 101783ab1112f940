"""The charts of the report as markup: learning, calibration, confusion, pseudo-labels."""

from collections.abc import Iterable

import numpy as np

from pc2seg_jax import reporting
from pc2seg_jax.confusion_picture import confusion_svg
from pc2seg_jax.report_chart import area_chart, line_chart, reliability_chart
from pc2seg_jax.report_markup import css_color, key, legend, run_key, run_titles, signed, table, text
from pc2seg_jax.reporting import Record

_LEARNING = {
    "val/miou": "mIoU on val, %",
    "val/teacher_miou": "mIoU of the teacher on val, %",
    "loss": "Loss: weighted sum of its parts",
    "loss/supervised": "Cross-entropy, labelled pixels",
    "loss/consistency": "Consistency, unlabelled pixels",
    "loss/contrast": "Contrast, unlabelled pixels",
}
_PSEUDO_LABELS = {
    "pseudo_label/confidence": "Mean confidence",
    "pseudo_label/accuracy": "Share that is right",
}
_MOST_CLASSES = 24  # that have a consistency curve of their own


def _run_keys(records: list[Record], shown: Iterable[int]) -> str:
    """What the colours mean, where there are several. shown: which of the runs have curves."""
    if len(records) == 1:
        return ""
    return legend([(run_key(i), records[i].name) for i in shown])


def _end(records: list[Record]) -> int:
    """Where the axes of all charts end."""
    return max(record.run.step for record in records)


def _charts(records: list[Record], titles: dict[str, str], top: float = 0) -> list[str]:
    """A chart for every metric that a run has logged."""
    names, charts = [record.name for record in records], []
    for metric, title in titles.items():
        curves = [reporting.curve(record, metric) for record in records]
        if any(curves):
            charts.append(
                f"<div><h3>{text(title)}</h3>{line_chart(title, names, curves, top=top, end=_end(records))}</div>"
            )
    return charts


def learning(records: list[Record]) -> str:
    """The losses and the evaluations of all runs."""
    charts = _charts(records, _LEARNING)
    if not charts:
        return "<p>The runs hold no metrics.jsonl.</p>"
    return f'{_run_keys(records, range(len(records)))}<div class="charts">{"".join(charts)}</div>'


def calibration(records: list[Record]) -> str:
    """The reliability diagram of the runs that have stored it; "" of none."""
    found = [(i, record.last["calibration"]) for i, record in enumerate(records) if record.last.get("calibration")]
    if not found:
        return ""
    bins = [[] for _ in records]
    for i, stored in found:
        bins[i] = stored["bins"]
    titles = run_titles(records)
    rows = [
        [titles[i], f"{stored['expected_calibration_error']:.2f}", signed(_sure(stored["bins"]))] for i, stored in found
    ]
    note = (
        "How often a pixel is right, of those that the network is as sure of: on the diagonal it is right as often as "
        "it says, below it too sure, above it too careful. The expected calibration error is the mean distance, "
        "weighted by pixels; the outline at the foot shows how many there are."
    )
    chart = reliability_chart([record.name for record in records], bins)
    columns = ["run", "error, %", "too sure by, %"]
    return (
        f'<p class="soft">{note}</p><div class="beside"><div class="square">{chart}</div>'
        f"<div>{table(columns, rows, numbers_from=1)}</div></div>"
    )


def _sure(bins: list[dict]) -> float:
    """Mean confidence minus accuracy in percent: positive where the network is too sure."""
    return 100 * sum(b["share"] * (b["confidence"] - b["accuracy"]) for b in bins if b["confidence"] is not None)


def confusion(records: list[Record]) -> str:
    """A matrix for every run that has stored it; "" of none."""
    parts = []
    for record in records:
        if "confusion" in record.last:
            title = f"<h3>{text(record.name)}</h3>" if len(records) > 1 else ""
            svg = confusion_svg(np.asarray(record.last["confusion"]), record.run.info.class_names)
            parts.append(f'<div>{title}<div class="wide">{svg}</div></div>')
    return f'<div class="beside">{"".join(parts)}</div>' if parts else ""


def pseudo_labels(records: list[Record]) -> str:
    """What the weak view says over the course of training: how surely, how rightly, of which classes; "" of no run."""
    names = [record.name for record in records]
    charts = _charts(records, _PSEUDO_LABELS, top=1)
    info = records[0].run.info
    shown = []
    for i, record in enumerate(records):
        shares = _shares(record)
        if shares:
            shown.append(i)
            title = "Classes, % of the pixels" + (f", {record.name}" if len(records) > 1 else "")
            chart = area_chart(title, list(info.class_names), _colors(record), shares, _true_shares(record))
            charts.append(f"<div><h3>{text(title)}</h3>{chart}</div>")
    if not charts:
        return ""
    keys = legend([(key(css_color(info.palette[i])), name) for i, name in enumerate(info.class_names)])
    per_class = {
        name: [reporting.curve(record, f"consistency/{name}") for record in records] for name in info.class_names
    }
    known = [name for name, curves in per_class.items() if any(curves)]
    small = []
    for name in known[:_MOST_CLASSES]:
        mark = key(css_color(info.palette[info.class_names.index(name)]))
        scale = {"top": _highest(per_class, known), "end": _end(records)}
        chart = line_chart(f"consistency of {name}", names, per_class[name], small=True, **scale)
        small.append(f"<div><h3>{mark}{text(name)}</h3>{chart}</div>")
    more = f" The first {_MOST_CLASSES} of {len(known)} classes." if len(known) > _MOST_CLASSES else ""
    note = (
        "Distance of the strong view's prediction from the weak view's, by the weak view's class. Where there is no "
        f"point, no pixel had the class.{more}"
    )
    return (
        '<p class="soft">What the network says of the weak views of unlabelled images while it learns.</p>'
        f'{_run_keys(records, shown)}{keys}<div class="charts">{"".join(charts)}</div>'
        + (f'<h3>Consistency by class</h3><p class="soft">{text(note)}</p>' if small else "")
        + (f'<div class="small">{"".join(small)}</div>' if small else "")
    )


def _highest(per_class: dict[str, list[list[tuple[int, float]]]], names: list[str]) -> float:
    """Of all curves, so that small charts have one scale."""
    return max(value for name in names for curve in per_class[name] for _, value in curve)


def _colors(record: Record) -> list[str]:
    info = record.run.info
    return [css_color(info.palette[i]) for i in range(len(info.class_names))]


def _shares(record: Record) -> list[list[tuple[int, float]]]:
    """A curve for every class over the same steps; [] where the run has not logged them."""
    keys = [f"pseudo_label/share/{name}" for name in record.run.info.class_names]
    lines = [line for line in record.metrics if any(name in line for name in keys)]
    return [[(line["step"], line.get(name, 0.0)) for line in lines] for name in keys] if lines else []


def _true_shares(record: Record) -> list[float] | None:
    """Of the classes in the val images' masks, 0..1."""
    pixels = np.asarray(record.last.get("confusion", [])).sum(-1)
    return (pixels / pixels.sum()).tolist() if pixels.sum() else None
