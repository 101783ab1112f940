"""Evaluation by the paper's protocol: one scale, no flip, padded to a fixed size, confusion matrix over all pixels."""

import json
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pc2seg_jax.files import AnyPath, replace_text
from pc2seg_jax.ops import metrics
from pc2seg_jax.parallel import Shardings, shard_batch
from pc2seg_jax.types import LabeledCrops, Tree
from pc2seg_jax.workdir import DatasetInfo


def evaluate(
    eval_step: Callable, networks: dict[str, Tree], batches: Iterable[LabeledCrops], shardings: Shardings
) -> dict[str, np.ndarray]:
    """Sums the confusion matrices of all batches: [C, C] int64, rows are the truth, columns the prediction.

    The same function serves the training loop and `pc2seg_jax.evaluate`. Filler images of the last batch carry only
    ignored pixels, so nothing is dropped or counted twice.

    Args:
      networks: {name: {"params", "batch_stats"}}, which see every batch one after the other.
    """
    # One step behind: while a batch is computed, the next one is read.
    total, pending = dict.fromkeys(networks, 0), None

    def add() -> None:
        for name, confusion in pending.items():
            total[name] = total[name] + np.asarray(confusion, np.int64)

    for batch in batches:
        placed = shard_batch(batch, shardings.data)
        current = {name: eval_step(net["params"], net["batch_stats"], placed) for name, net in networks.items()}
        if pending is not None:
            add()
        pending = current
    add()
    return total


def networks_of(params: Tree, batch_stats: Tree, teacher: Tree) -> dict[str, Tree]:
    """What is evaluated of a state or a restored run: the network, and the teacher unless it is {}."""
    network = {"network": {"params": params, "batch_stats": batch_stats}}
    return network | ({"teacher": teacher} if teacher else {})


def _scores(confusion: np.ndarray, class_names: Sequence[str], mean_without: Sequence[str]) -> dict:
    iou = metrics.iou_per_class(confusion)
    left_out = [class_names.index(name) for name in mean_without]
    second = {"classes": list(mean_without), "miou": 100 * metrics.mean_iou(confusion, left_out)}
    return {
        "miou": 100 * metrics.mean_iou(confusion),
        **({"miou_without": second} if mean_without else {}),
        "pixel_accuracy": 100 * float(metrics.pixel_accuracy(confusion)),
        "iou": {
            name: None if np.isnan(value) else 100 * float(value) for name, value in zip(class_names, iou, strict=True)
        },
    }


def summarize(
    confusions: dict[str, np.ndarray], info: DatasetInfo, *, step: int, split: str, mean_without: Sequence[str] = ()
) -> dict:
    """The result as it is stored and shown; mIoU, IoU and accuracy in percent, None for classes without a pixel.

    Args:
      confusions: of `evaluate`. The scores of the teacher stand under "teacher", those of the network on top.
      mean_without: names of classes that a second mean, `miou_without`, leaves out.
    """
    scores = {name: _scores(value, info.class_names, mean_without) for name, value in confusions.items()}
    return {
        **scores.pop("network"),
        **scores,
        "protocol": {
            "resize": "none; images are padded at the bottom and the right with the mean pixel",
            "size": list(info.eval_size),
            "scales": [1.0],
            "flip": False,
            "ignore_id": info.ignore_id,
            "absent_classes": "skipped in the mean",
        },
        "split": {"role": split, **info.splits[split]._asdict()},
        "checkpoint": {"step": step},
    }


def write(workdir: AnyPath, result: dict) -> str:
    """Writes `evaluation/<step>_<split>.json` and returns its path."""
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    path = folder / f"{result['checkpoint']['step']}_{result['split']['role']}.json"
    replace_text(path, json.dumps(result, indent=2) + "\n")
    return str(path)


def table(result: dict) -> str:
    """The numbers of a result as aligned text."""
    rows = [(name, "absent" if value is None else f"{value:.2f}") for name, value in result["iou"].items()]
    rows.append(("mIoU", f"{result['miou']:.2f}"))
    if second := result.get("miou_without"):
        rows.append((f"mIoU without {', '.join(second['classes'])}", f"{second['miou']:.2f}"))
    rows.append(("pixel accuracy", f"{result['pixel_accuracy']:.2f}"))
    if teacher := result.get("teacher"):
        rows.append(("mIoU of the teacher", f"{teacher['miou']:.2f}"))
    width = max(len(name) for name, _ in rows)
    split = result["split"]
    head = (
        f"step {result['checkpoint']['step']}, {split['role']} ({split['name']}, {split['count']} images, "
        f"sha256 {split['sha256'][:8]}), padded to {result['protocol']['size'][0]}x{result['protocol']['size'][1]}, "
        "one scale, no flip; IoU in %"
    )
    return "\n".join([head, *(f"  {name:<{width}}  {value:>7}" for name, value in rows)])
