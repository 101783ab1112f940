"""What a report says about runs: numbers from their folders, predictions from their latest checkpoints."""

import json
import math
import statistics
from typing import NamedTuple

import numpy as np

from pc2seg_jax import build, restoring
from pc2seg_jax import config as config_lib
from pc2seg_jax import workdir as workdir_lib
from pc2seg_jax.errors import UserError
from pc2seg_jax.files import AnyPath
from pc2seg_jax.prediction import make_predictor


class Record(NamedTuple):
    """A run as the report shows it.

    last: the evaluation on val of the latest checkpoint. best: the one with the highest mIoU. metrics: the lines of
    metrics.jsonl and timings.jsonl. config: dotted keys.
    """

    name: str
    run: restoring.Run
    config: dict
    last: dict
    best: dict
    metrics: list[dict]


class Picture(NamedTuple):
    """A val image with what it shows, [h, w] ids: the truth, and the prediction of every run. image: uint8 RGB."""

    name: str
    image: np.ndarray
    truth: np.ndarray
    predictions: list[np.ndarray]


def read_records(workdirs: list[AnyPath]) -> list[Record]:
    """Reads runs that were evaluated on the same val images, in the order given.

    Raises:
      UserError: when a folder is not a run's, lacks a checkpoint or its evaluation, or when the runs have different
        classes or val images.
    """
    names = [path.resolve().name for path in workdirs]
    if len(set(names)) < len(names):
        names = [str(path) for path in workdirs]
    records = [_read_record(name, path) for name, path in zip(names, workdirs, strict=True)]
    first = records[0].run.info
    for record, path in zip(records, workdirs, strict=True):
        info = record.run.info
        if info.class_names != first.class_names:
            raise UserError(f"{path} has other classes than {workdirs[0]}: report runs of one dataset together")
        if info.splits["val"].sha256 != first.splits["val"].sha256:
            raise UserError(
                f"{path} was evaluated on other val images than {workdirs[0]} (sha256 {info.splits['val'].sha256[:8]}, "
                f"{first.splits['val'].sha256[:8]}), so their numbers cannot be compared: report them separately"
            )
    return records


def _read_record(name: str, workdir: AnyPath) -> Record:
    if not (workdir / "config.json").is_file():
        raise UserError(
            f"--runs names {workdir}, which is not the folder of a run (it has no config.json): "
            "name folders that pc2seg_jax.train wrote as its --workdir"
        )
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} holds no checkpoint: train it to its first evaluation, or leave it out of --runs")
    run = restoring.restore(workdir, "latest")
    evaluations = {path.stem: _read_evaluation(path) for path in sorted(workdir.glob("evaluation/*_val.json"))}
    last = evaluations.get(f"{run.step}_val")
    if last is None:
        raise UserError(
            f"{workdir} has no evaluation of its latest checkpoint, step {run.step}: "
            f"run python -m pc2seg_jax.evaluate --workdir={workdir}"
        )
    # Compared with >=, so that of equal evaluations the last checkpoint's counts as the best.
    best = last
    for result in evaluations.values():
        best = best if best["miou"] >= result["miou"] else result
    lines = [line for file in ("metrics", "timings") for line in _read_metrics(workdir / f"{file}.jsonl")]
    return Record(name, run, config_lib.flatten(run.config), last, best, lines)


def _read_evaluation(path: AnyPath) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): write it again with python -m pc2seg_jax.evaluate") from error


def _read_metrics(path: AnyPath) -> list[dict]:
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:  # a line cut off by a crash
            continue
    return lines


def curve(record: Record, key: str) -> list[tuple[int, float]]:
    """(step, value) of every line that holds a finite value of `key`."""
    return [(line["step"], line[key]) for line in record.metrics if key in line and math.isfinite(line[key])]


def headline(record: Record) -> dict[str, str]:
    """Column title -> text. '-' stands for what the run's folder does not tell."""
    config, info = record.config, record.run.info
    supervised = config["objective"] == "supervised"
    step, steps = record.run.step, config["steps"]
    seconds, rates = curve(record, "seconds"), curve(record, "images_per_second")
    return {
        "run": record.name,
        "objective": config["objective"],
        "labelled images": str(info.splits["labeled"].count),
        "unlabelled images": "none" if supervised else str(info.splits["unlabeled"].count),
        "images per step": f"{config['batch_labeled']}" + ("" if supervised else f" + {config['batch_unlabeled']}"),
        "steps": str(step) if step == steps else f"{step} of {steps}",
        "val mIoU %": f"{record.last['miou']:.2f}",
        "best val mIoU %": f"{record.best['miou']:.2f} (step {record.best['checkpoint']['step']})",
        "pixel accuracy %": f"{record.last['pixel_accuracy']:.2f}",
        "training minutes": f"{seconds[-1][1] / 60:.1f}" if seconds else "-",
        "images/s": f"{statistics.median(rate for _, rate in rates):.1f}" if rates else "-",
    }


def text_table(rows: list[dict[str, str]]) -> str:
    """Rows with the same keys as aligned text, the keys as titles."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def config_differences(records: list[Record]) -> dict[str, list]:
    """Key -> its value in every run, for the keys whose values are not all the same."""
    keys = records[0].config
    values = {key: [record.config[key] for record in records] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def make_pictures(records: list[Record], count: int) -> list[Picture]:
    """Up to `count` val images, spread evenly over the list, with every run's prediction.

    Raises:
      UserError: when the data cannot be read, or its val list is no longer the one of the runs.
    """
    if not count:
        return []
    first = records[0].run
    val = build.build_dataset(first.config).val
    stored = first.info.splits["val"]
    found = workdir_lib.describe_split(stored.name, val.ids)
    if found != stored:
        raise UserError(
            f"The list of val images has changed since training ({stored.count} images then, {found.count} now, sha256 "
            f"{stored.sha256[:8]} then, {found.sha256[:8]} now): restore it, or use --images=0"
        )
    indices = np.unique(np.linspace(0, len(val.ids) - 1, min(count, len(val.ids))).round().astype(int)).tolist()
    shown = [(val.ids[i], np.asarray(val.read_image(i)), np.asarray(val.read_mask(i))) for i in indices]
    predictors = [make_predictor(record.run) for record in records]
    return [
        Picture(name, image, truth, [predict(image).argmax(-1) for predict in predictors])
        for name, image, truth in shown
    ]
