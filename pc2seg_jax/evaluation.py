"""Evaluation by the paper's protocol: one scale, no flip, padded to a fixed size, confusion matrix over all pixels."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from pc2seg_jax import bootstrap
from pc2seg_jax.errors import UserError
from pc2seg_jax.files import AnyPath, read_arrays, replace_bytes, replace_text
from pc2seg_jax.inference import ONE_VIEW, InferenceViews
from pc2seg_jax.ops import metrics
from pc2seg_jax.ops.boundary import boundary_iou
from pc2seg_jax.ops.calibration import BINS, CalibrationCounts, expected_calibration_error
from pc2seg_jax.parallel import Shardings, shard_batch
from pc2seg_jax.step import EvaluationCounts
from pc2seg_jax.types import LabeledCrops, Tree
from pc2seg_jax.workdir import DatasetInfo

AGAIN = "write it again with python -m pc2seg_jax.evaluate"


class Measured(NamedTuple):
    """What an evaluation measures of one network.

    confusions: [n, C, C] int32 of every image, rows are the truth. boundary: [3, C] and calibration: [K], summed over
    the images (`ops.boundary`, `ops.calibration`).
    """

    confusions: np.ndarray
    boundary: np.ndarray
    calibration: CalibrationCounts


def evaluate(
    eval_step: Callable,
    networks: dict[str, Tree],
    batches: Iterable[LabeledCrops],
    shardings: Shardings,
    *,
    count: int,
) -> dict[str, Measured]:
    """Measures every network on all batches.

    The same function serves the training loop and `pc2seg_jax.evaluate`. Filler images of the last batch carry only
    ignored pixels, so nothing is dropped or counted twice.

    Args:
      networks: {name: {"params", "batch_stats"}}, which see every batch one after the other.
      count: n, the images in the batches; what follows is filler.
    """
    # One step behind: while a batch is computed, the next one is read.
    found, pending = {name: [] for name in networks}, None

    def add() -> None:
        for name, counts in jax.device_get(pending).items():
            found[name].append(
                counts._replace(
                    boundary=np.sum(counts.boundary, 0, dtype=np.int64),
                    calibration=CalibrationCounts(*(np.sum(x, 0, dtype=np.float64) for x in counts.calibration)),
                )
            )

    for batch in batches:
        placed = shard_batch(batch, shardings.data)
        current = {name: eval_step(net["params"], net["batch_stats"], placed) for name, net in networks.items()}
        if pending is not None:
            add()
        pending = current
    add()
    return {name: _joined(parts, count) for name, parts in found.items()}


def _joined(parts: list[EvaluationCounts], count: int) -> Measured:
    return Measured(
        np.concatenate([part.confusion for part in parts])[:count],
        sum(part.boundary for part in parts),
        CalibrationCounts(*(sum(values) for values in zip(*(part.calibration for part in parts), strict=True))),
    )


def networks_of(params: Tree, batch_stats: Tree, teacher: Tree) -> dict[str, Tree]:
    """What is evaluated of a state or a restored run: the network, and the teacher unless it is {}."""
    network = {"network": {"params": params, "batch_stats": batch_stats}}
    return network | ({"teacher": teacher} if teacher else {})


def _percent(values: np.ndarray, names: Sequence[str]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else 100 * float(value) for name, value in zip(names, values, strict=True)}


def _bins(counts: CalibrationCounts) -> list[dict]:
    total, bins = np.sum(counts.pixels), []
    for k, (pixels, correct, confidence) in enumerate(zip(*counts, strict=True)):
        bins.append(
            {
                "low": k / BINS,
                "high": (k + 1) / BINS,
                "share": float(pixels / total) if total else 0.0,
                "confidence": float(confidence / pixels) if pixels else None,
                "accuracy": float(correct / pixels) if pixels else None,
            }
        )
    return bins


def _scores(measured: Measured, class_names: Sequence[str], mean_without: Sequence[str]) -> dict:
    confusion = measured.confusions.sum(0, dtype=np.int64)
    left_out = [class_names.index(name) for name in mean_without]
    second = {"classes": list(mean_without), "miou": 100 * metrics.mean_iou(confusion, left_out)}
    resampled = bootstrap.resampled_mean_iou(bootstrap.class_counts(measured.confusions))
    boundary = boundary_iou(measured.boundary)
    return {
        "miou": 100 * metrics.mean_iou(confusion),
        "miou_interval": bootstrap.interval(100 * resampled),
        **({"miou_without": second} if mean_without else {}),
        "pixel_accuracy": 100 * float(metrics.pixel_accuracy(confusion)),
        "iou": _percent(metrics.iou_per_class(confusion), class_names),
        "boundary_miou": 100 * float(np.nanmean(boundary)) if np.isfinite(boundary).any() else None,
        "boundary_iou": _percent(boundary, class_names),
        "calibration": {
            "expected_calibration_error": 100 * expected_calibration_error(measured.calibration),
            "bins": _bins(measured.calibration),
        },
        "confusion": confusion.tolist(),
    }


def summarize(
    measured: dict[str, Measured],
    info: DatasetInfo,
    *,
    step: int,
    split: str,
    mean_without: Sequence[str] = (),
    views: InferenceViews = ONE_VIEW,
) -> dict:
    """The result as it is stored and shown; IoU, accuracy and calibration error in percent, None where there is none.

    Args:
      measured: of `evaluate`. The scores of the teacher stand under "teacher", those of the network on top.
      mean_without: names of classes that a second mean, `miou_without`, leaves out.
      views: what the probabilities were averaged over.
    """
    scores = {name: _scores(value, info.class_names, mean_without) for name, value in measured.items()}
    return {
        **scores.pop("network"),
        **scores,
        "protocol": {
            "resize": "none; images are padded at the bottom and the right with the mean pixel",
            "size": list(info.eval_size),
            "scales": list(views.scales),
            "flip": views.flip,
            "window": views.window,
            "ignore_id": info.ignore_id,
            "absent_classes": "skipped in the mean",
            "interval": f"{bootstrap.LEVEL} %, bootstrap over images, {bootstrap.RESAMPLES} resamples",
        },
        "split": {"role": split, **info.splits[split]._asdict()},
        "checkpoint": {"step": step},
    }


def file_name(step: int, split: str, views: InferenceViews = ONE_VIEW) -> str:
    """The name of an evaluation's files without their ending: `300_val`, `300_val_flip`."""
    return "_".join(filter(None, (str(step), split, views.name())))


def write(
    workdir: AnyPath,
    result: dict,
    measured: dict[str, Measured],
    ids: Sequence[str],
    views: InferenceViews = ONE_VIEW,
) -> str:
    """Writes `evaluation/<step>_<split>.json` and, with the confusion matrix of every image, .npz; returns the path of
    the former.

    Args:
      ids: n names of the images.
    """
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    name = file_name(result["checkpoint"]["step"], result["split"]["role"], views)
    stream = io.BytesIO()
    np.savez_compressed(stream, ids=np.array(ids), **{name: value.confusions for name, value in measured.items()})
    replace_bytes(folder / f"{name}.npz", stream.getvalue())
    path = folder / f"{name}.json"
    replace_text(path, json.dumps(result, indent=2) + "\n")
    return str(path)


def read(workdir: AnyPath, name: str) -> tuple[dict, dict[str, np.ndarray]] | None:
    """(result, {"ids": [n], "network": [n, C, C], ...}) of an evaluation that `write` has stored, None without one.

    Raises:
      UserError: when a file is damaged.
    """
    path, images = (workdir / "evaluation" / f"{name}.{ending}" for ending in ("json", "npz"))
    if not (path.exists() and images.exists()):
        return None
    try:
        result = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {AGAIN}") from error
    return result, read_arrays(images, AGAIN)


def describe_views(protocol: dict) -> str:
    """What a stored protocol averaged over, in words: "one scale, no flip"."""
    scales = protocol["scales"]
    words = ["one scale" if scales == [1.0] else f"scales {', '.join(f'{scale:g}' for scale in scales)}"]
    words.append("flip" if protocol["flip"] else "no flip")
    if window := protocol.get("window"):
        words.append(f"windows of {window}x{window}")
    return ", ".join(words)


def _in_table(value: float | None) -> str:
    return "absent" if value is None else f"{value:.2f}"


def table(result: dict) -> str:
    """The numbers of a result as aligned text."""
    rows = [("", "IoU", "boundary IoU")]
    rows += [(name, _in_table(value), _in_table(result["boundary_iou"][name])) for name, value in result["iou"].items()]
    rows.append(("mean", _in_table(result["miou"]), _in_table(result["boundary_miou"])))
    lines = [
        (
            f"{bootstrap.LEVEL} % interval of mIoU, over images",
            "{} to {}".format(*map(_in_table, result["miou_interval"])),
        )
    ]
    if second := result.get("miou_without"):
        lines.append((f"mIoU without {', '.join(second['classes'])}", f"{second['miou']:.2f}"))
    lines.append(("pixel accuracy", f"{result['pixel_accuracy']:.2f}"))
    lines.append(("calibration error", f"{result['calibration']['expected_calibration_error']:.2f}"))
    if teacher := result.get("teacher"):
        lines.append(
            (
                "mIoU of the teacher",
                "{:.2f} ({} to {})".format(teacher["miou"], *map(_in_table, teacher["miou_interval"])),
            )
        )
    width, wide = max(len(row[0]) for row in rows), max(len(line[0]) for line in lines)
    split, size = result["split"], result["protocol"]["size"]
    head = (
        f"step {result['checkpoint']['step']}, {split['role']} ({split['name']}, {split['count']} images, "
        f"sha256 {split['sha256'][:8]}), padded to {size[0]}x{size[1]}, {describe_views(result['protocol'])}; in %"
    )
    return "\n".join(
        [
            head,
            *(f"  {name:<{width}}  {first:>7}  {second:>12}" for name, first, second in rows),
            *(f"  {name:<{wide}}  {value}" for name, value in lines),
        ]
    )
