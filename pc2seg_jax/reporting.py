"""What a report says about runs: numbers from their folders, predictions from their latest checkpoints."""

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from pc2seg_jax import build, comparison, restoring
from pc2seg_jax import config as config_lib
from pc2seg_jax import workdir as workdir_lib
from pc2seg_jax.errors import UserError
from pc2seg_jax.evaluation import AGAIN
from pc2seg_jax.files import AnyPath, read_arrays
from pc2seg_jax.ops.metrics import mean_iou
from pc2seg_jax.prediction import make_predictor

_DEFAULT_PROTOCOL = re.compile(r"\d+_val")  # names of evaluations with which runs are compared; others hold more words


class Record(NamedTuple):
    """A run as the report shows it.

    last: the evaluation on val of the latest checkpoint. best: the one with the highest mIoU. metrics: the lines of
    metrics.jsonl and timings.jsonl. config: dotted keys. images: {id of a val image: its confusion matrix [C, C]} of
    `last`, {} where an older version has not stored them.
    """

    name: str
    run: restoring.Run
    config: dict
    last: dict
    best: dict
    metrics: list[dict]
    images: dict[str, np.ndarray]

    @property
    def supervised(self) -> bool:
        return self.config["objective"] == "supervised"


class Picture(NamedTuple):
    """A val image with what it shows, [h, w] ids: the truth, and the prediction of every run. image: uint8 RGB.

    group: why it is shown, "worst", "best" or "spread".
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    predictions: list[np.ndarray]
    group: str = "spread"


def read_records(workdirs: list[AnyPath]) -> list[Record]:
    """Reads runs that were evaluated on the same val images, in the order given.

    Raises:
      UserError: when a folder is not a run's, lacks a checkpoint or its evaluation, when a file is damaged, or when the
        runs have different classes or val images.
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
    classes = run.info.class_names
    evaluations = {
        path.stem: _read_evaluation(path, classes)
        for path in sorted(workdir.glob("evaluation/*_val.json"))
        if _DEFAULT_PROTOCOL.fullmatch(path.stem)
    }
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
    images = _read_images(workdir / "evaluation" / f"{run.step}_val.npz", len(classes))
    return Record(name, run, config_lib.flatten(run.config), last, best, lines, images)


def _read_evaluation(path: AnyPath, class_names: tuple[str, ...]) -> dict:
    try:
        stored = json.loads(path.read_text())
        if missing := {"miou", "iou", "pixel_accuracy", "protocol", "checkpoint"} - stored.keys():
            raise ValueError(f"{sorted(missing)[0]} is missing")
        if set(stored["iou"]) != set(class_names):
            raise ValueError("its classes are not the run's")
        if "confusion" in stored and np.shape(stored["confusion"]) != (len(class_names),) * 2:
            raise ValueError(f"its confusion matrix is not one of {len(class_names)} classes")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): {AGAIN}") from error
    return stored


def _read_images(path: AnyPath, num_classes: int) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    arrays = read_arrays(path, AGAIN)
    ids, confusions = arrays.get("ids", np.empty(0)).tolist(), arrays.get("network", np.empty(0))
    if confusions.shape != (len(ids), num_classes, num_classes):
        raise UserError(
            f"{path} is damaged ({len(ids)} images, but confusion matrices {list(confusions.shape)}): {AGAIN}"
        )
    return dict(zip(ids, confusions, strict=True))


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


def starts(record: Record) -> list[dict]:
    """Of every start that made steps of the run: "step", "started", "versions" and "hardware"; [] of older runs."""
    return [line for line in record.metrics if "started" in line]


def headline(record: Record) -> dict[str, str]:
    """Column title -> text. '-' stands for what the run's folder does not tell."""
    config, info, last = record.config, record.run.info, record.last
    step, steps = record.run.step, config["steps"]
    seconds, rates, memory = (curve(record, key) for key in ("seconds", "images_per_second", "memory_gb"))
    calibration, second = last.get("calibration", {}), last.get("miou_without", {})

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    span = interval(last)
    return {
        "run": record.name,
        "objective": config["objective"],
        "labelled images": str(info.splits["labeled"].count),
        "unlabelled images": "none" if record.supervised else str(info.splits["unlabeled"].count),
        "images per step": f"{config['batch_labeled']}"
        + ("" if record.supervised else f" + {config['batch_unlabeled']}"),
        "steps": str(step) if step == steps else f"{step} of {steps}",
        "val mIoU %": percent(last["miou"]),
        "95 % interval": " to ".join(map(percent, span)) if span else "-",
        "best val mIoU %": f"{record.best['miou']:.2f} (step {record.best['checkpoint']['step']})",
        "val mIoU % of the teacher": percent(last.get("teacher", {}).get("miou")),
        "val mIoU % without some classes": f"{second['miou']:.2f} ({', '.join(second['classes'])})" if second else "-",
        "pixel accuracy %": percent(last["pixel_accuracy"]),
        "boundary mIoU %": percent(last.get("boundary_miou")),
        "calibration error %": percent(calibration.get("expected_calibration_error")),
        "training minutes": f"{seconds[-1][1] / 60:.1f}" if seconds else "-",
        "images/s": f"{statistics.median(rate for _, rate in rates):.1f}" if rates else "-",
        "memory GB": f"{max(value for _, value in memory):.1f}" if memory else "-",
        "hardware": "; ".join(dict.fromkeys(start["hardware"] for start in starts(record))) or "-",
    }


def interval(result: dict) -> tuple[float, float] | None:
    """The 95 % interval of a result's mIoU; None where it was not stored, or there was nothing to count."""
    low, high = result.get("miou_interval") or (None, None)
    return None if low is None or high is None else (low, high)


def differences(records: list[Record]) -> list[dict]:
    """What `comparison.compare` finds of the runs, the first being the base; [] unless all have stored their images.

    There is no difference either of runs that were evaluated in different ways.
    """
    entries = [
        comparison.Entry(
            r.name, r.last, {"ids": np.array(list(r.images)), "network": np.array(list(r.images.values()))}
        )
        for r in records
        if r.images and "boundary_miou" in r.last
    ]
    same = {(tuple(r.images), json.dumps(r.last["protocol"])) for r in records}
    return comparison.compare(entries) if len(entries) == len(records) > 1 and len(same) == 1 else []


def config_differences(records: list[Record]) -> dict[str, list]:
    """Key -> its value in every run, for the keys whose values are not all the same."""
    keys = records[0].config
    values = {key: [record.config[key] for record in records] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def image_scores(records: list[Record]) -> dict[str, list[float]]:
    """Id -> mIoU of the image alone in percent, run by run; {} unless every run has stored its images."""
    per_run = [{name: 100 * mean_iou(confusion) for name, confusion in r.images.items()} for r in records]
    scores = {name: [run.get(name, math.nan) for run in per_run] for name in per_run[0]}
    return {name: values for name, values in scores.items() if all(map(math.isfinite, values))}


def choose_images(records: list[Record], ids: tuple[str, ...], count: int) -> dict[str, list[int]]:
    """Group -> indices into `ids`: `count` spread evenly, and half as many (rounded up) of every other group.

    Of several runs, "different" are the images whose mIoU the runs disagree on most. "worst" and "best" go by the mean
    of the runs. The best and the different are of several classes, where there are such: of a background alone, mIoU
    says whether a single pixel is wrong. There are no groups but "spread" of fewer than four images, or where the runs
    have not stored them; at most a quarter of all images is of one.
    """
    spread = np.unique(np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(int)).tolist()
    places = {name: i for i, name in enumerate(ids)}
    scores = {name: values for name, values in image_scores(records).items() if name in places}
    few = min(-(-count // 2), len(scores) // 4)

    def first(names: Iterable[str], key: Callable[[str], float]) -> list[int]:
        return [places[name] for name in sorted(names, key=key)[:few]]

    several = [name for name in scores if np.count_nonzero(records[0].images[name].sum(1)) > 1] or scores
    chosen = {
        "different": first(several, lambda name: min(scores[name]) - max(scores[name])) if len(records) > 1 else [],
        "worst": first(scores, lambda name: statistics.mean(scores[name])),
        "best": first(several, lambda name: -statistics.mean(scores[name])),
        "spread": spread,
    }
    return {group: indices for group, indices in chosen.items() if indices}


def make_pictures(records: list[Record], count: int) -> list[Picture]:
    """The val images of `choose_images`, group by group, with every run's prediction.

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
    groups = choose_images(records, val.ids, count)
    predictors = [make_predictor(record.run) for record in records]
    shown = {}
    for i in dict.fromkeys(i for indices in groups.values() for i in indices):
        image = np.asarray(val.read_image(i))
        shown[i] = (
            val.ids[i],
            image,
            np.asarray(val.read_mask(i)),
            [predict(image).argmax(-1).astype(np.uint8) for predict in predictors],
        )
    return [Picture(*shown[i], group) for group, indices in groups.items() for i in indices]
