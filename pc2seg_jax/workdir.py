"""A run's folder: everything that evaluation and prediction need, and the guard against mixing two runs.

config.json      the full configuration
dataset.json     class names, palette, ignore id, evaluation size, and name, count and hash of every split
checkpoints/     the newest steps and the best one
metrics.jsonl    scalars, one line per logged step and per evaluation; also in tensorboard/
timings.jsonl    what depends on the clock and the machine: speed, waiting, memory; versions and hardware of every start
evaluation/      <step>_<split>.json, and .npz with the confusion matrix of every image
report.html      of pc2seg_jax.report
"""

import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple

import ml_collections

from pc2seg_jax import config as config_lib
from pc2seg_jax.errors import UserError
from pc2seg_jax.files import AnyPath, replace_text


class Split(NamedTuple):
    """Which images: name, count, and SHA-256 of the ids joined by newlines, in order."""

    name: str
    count: int
    sha256: str


class DatasetInfo(NamedTuple):
    """What outlives the dataset. palette: [256][3], RGB 0..255. eval_size: (H, W) to which images are padded."""

    class_names: tuple[str, ...]
    palette: list
    ignore_id: int
    eval_size: tuple[int, int]
    splits: dict[str, Split]


def describe_split(name: str, ids: Iterable[str]) -> Split:
    """The fingerprint of a list of ids."""
    ids = tuple(ids)
    return Split(name, len(ids), hashlib.sha256("\n".join(ids).encode()).hexdigest())


def claim(workdir: AnyPath, config: ml_collections.ConfigDict, info: DatasetInfo) -> None:
    """Makes `workdir` this run's folder, or checks that it already is.

    Raises:
      UserError: when it belongs to a run with another configuration (naming the keys) or other data, or is a folder
        with other things in it.
    """
    stored = workdir / "config.json"
    if stored.exists():
        changed = config_lib.differences(config_lib.load(stored), config)
        if changed:
            raise UserError(
                f"{workdir} belongs to a run with another configuration: {'; '.join(changed)}. "
                "Use another --workdir, or the run's own settings to continue it"
            )
        before = load_info(workdir)
        for name, split in info.splits.items():
            if before.splits[name] != split:
                raise UserError(
                    f"{workdir} was trained with another list of {name} images ({before.splits[name].count} then, "
                    f"{split.count} now, sha256 {before.splits[name].sha256[:8]} then, {split.sha256[:8]} now): "
                    "use another --workdir, or restore the list to continue the run"
                )
        return
    begun = {
        "dataset.json.part",
        "dataset.json",
        "config.json.part",
    }  # of a run that was killed while it claimed the folder
    if workdir.exists() and (not workdir.is_dir() or {path.name for path in workdir.iterdir()} - begun):
        raise UserError(f"--workdir={workdir} exists and is not the folder of a run: name a new or an empty folder")
    workdir.mkdir(parents=True, exist_ok=True)
    splits = {name: split._asdict() for name, split in info.splits.items()}
    replace_text(workdir / "dataset.json", json.dumps(info._asdict() | {"splits": splits}) + "\n")
    config_lib.save(config, stored)  # last: a folder with config.json is complete


def load(workdir: AnyPath) -> tuple[ml_collections.ConfigDict, DatasetInfo]:
    """Configuration and dataset description of a run.

    Raises:
      UserError: when `workdir` is not the folder of a run.
    """
    stored = workdir / "config.json"
    if not stored.exists():
        raise UserError(f"--workdir={workdir} is not the folder of a run: it has no config.json")
    return config_lib.load(stored), load_info(workdir)


def load_info(workdir: AnyPath) -> DatasetInfo:
    """Reads dataset.json.

    Raises:
      UserError: when the file is missing or damaged.
    """
    path = workdir / "dataset.json"
    try:
        stored = json.loads(path.read_text())
        stored["splits"] = {name: Split(**split) for name, split in stored["splits"].items()}
        stored |= {key: tuple(stored[key]) for key in ("class_names", "eval_size")}
        return DatasetInfo(**stored)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): it was written by pc2seg_jax.train; restore it") from error
