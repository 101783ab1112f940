"""Runs side by side on the same images: paired differences and how far they move with the choice of images."""

from typing import NamedTuple

import numpy as np

from pc2seg_jax import bootstrap
from pc2seg_jax.errors import UserError


class Entry(NamedTuple):
    """An evaluated run. result, confusions: of `evaluation.read`. network: "network" or "teacher"."""

    name: str
    result: dict
    confusions: dict[str, np.ndarray]
    network: str = "network"

    def scores(self) -> dict:
        return self.result if self.network == "network" else self.result["teacher"]


def check(entries: list[Entry]) -> None:
    """Refuses runs whose numbers cannot be compared.

    Raises:
      UserError: naming the runs, for other images, classes or protocols, or a run without the wanted network.
    """
    first = entries[0]
    for entry in entries:
        if entry.network not in entry.confusions:
            raise UserError(f"{entry.name} has no {entry.network}: it was trained with config.teacher_momentum=0")
        for what, ours, theirs in (
            ("images", entry.result["split"]["sha256"], first.result["split"]["sha256"]),
            ("classes", list(entry.result["iou"]), list(first.result["iou"])),
            ("settings of evaluation", entry.result["protocol"], first.result["protocol"]),
        ):
            if ours != theirs:
                raise UserError(
                    f"{entry.name} was evaluated with other {what} than {first.name}: compare runs of one dataset, "
                    "list and protocol"
                )


def compare(entries: list[Entry]) -> list[dict]:
    """One row per run; differences are those to the first.

    The difference of mIoU has the interval of a paired bootstrap: both runs are judged by the same resampled images.
    Of every single image, mIoU is the mean over the classes that are in its truth or prediction.

    Returns:
      rows of name, step, miou, interval, pixel_accuracy, boundary_miou, and for all but the first "difference": miou,
      interval, per_image (mean over images), per_image_interval, better and worse (counts of images); all in %.

    Raises:
      UserError: see `check`.
    """
    check(entries)
    counts = [bootstrap.class_counts(entry.confusions[entry.network]) for entry in entries]
    resampled = [bootstrap.resampled_mean_iou(x) for x in counts]
    rows = []
    for entry, mine, draws in zip(entries, counts, resampled, strict=True):
        scores = entry.scores()
        row = {"name": entry.name, "step": entry.result["checkpoint"]["step"]}
        row |= {key: scores[key] for key in ("miou", "pixel_accuracy", "boundary_miou")}
        row["interval"] = bootstrap.interval(100 * draws)
        if entry is not entries[0]:
            row["difference"] = _difference(mine, counts[0], draws, resampled[0])
        rows.append(row)
    return rows


def _difference(mine: np.ndarray, first: np.ndarray, draws: np.ndarray, first_draws: np.ndarray) -> dict:
    per_image = 100 * (bootstrap.mean_iou_of_counts(mine) - bootstrap.mean_iou_of_counts(first))
    per_image = per_image[np.isfinite(per_image)]
    total = bootstrap.mean_iou_of_counts(mine.sum(0)) - bootstrap.mean_iou_of_counts(first.sum(0))
    return {
        "miou": 100 * float(total),
        "interval": bootstrap.interval(100 * (draws - first_draws)),
        "per_image": float(per_image.mean()) if len(per_image) else None,
        "per_image_interval": bootstrap.interval(bootstrap.resampled_mean(per_image)),
        "better": int((per_image > 0).sum()),
        "worse": int((per_image < 0).sum()),
    }


def text_table(rows: list[dict[str, str]]) -> str:
    """Rows with the same keys as aligned text, the keys as titles."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.2f}"


def _span(value: float | None, interval: list, sign: str = "") -> str:
    return f"{_number(value, sign)} [{', '.join(_number(x, sign) for x in interval)}]"


def table(rows: list[dict]) -> str:
    """The rows of `compare` as aligned text."""
    lines = []
    for row in rows:
        d = row.get("difference")
        lines.append(
            {
                "run": row["name"],
                "step": str(row["step"]),
                "mIoU": _span(row["miou"], row["interval"]),
                "boundary": _number(row["boundary_miou"]),
                "accuracy": _number(row["pixel_accuracy"]),
                "difference of mIoU": _span(d["miou"], d["interval"], "+") if d else "-",
                "per image": _span(d["per_image"], d["per_image_interval"], "+") if d else "-",
                "better/worse": f"{d['better']}/{d['worse']}" if d else "-",
            }
        )
    note = f"in %; [{bootstrap.LEVEL} % interval, bootstrap over images]; differences to {rows[0]['name']}"
    return f"{text_table(lines)}\n{note}"
