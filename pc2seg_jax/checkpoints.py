"""Saving and restoring with Orbax: the newest checkpoints and the best one, with check sums.

Only the lead touches the disk: the state is the same on every device, and what the lead reads it broadcasts. A restart
may therefore have any number of devices and hosts.
"""

import json
import sys
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from pc2seg_jax import processes
from pc2seg_jax.errors import UserError
from pc2seg_jax.files import AnyPath, absolute, is_local
from pc2seg_jax.storage_noise import mute_storage
from pc2seg_jax.types import TrainState, Tree

METRIC = "miou"
ITEMS = {"model": ("params", "batch_stats", "teacher"), "train": ("step", "opt_state")}  # fields of the state
NEWEST = 2  # so that there is another one where the newest turns out to be damaged
_LEAD_ALONE = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix="checkpoints"
)
_HALF_WRITTEN = "*.orbax-checkpoint-tmp*"


class _Damaged(Exception):
    """Why a checkpoint cannot be used."""


def check_sums(tree: Tree) -> dict[str, int]:
    """CRC-32 of every leaf's bytes, by its path; arrays of numpy."""
    return {
        jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(x).tobytes())
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


class Checkpoints:
    """The checkpoints of one run, in `<workdir>/checkpoints/<step>/{model,train,check}`.

    `model` holds parameters and batch statistics, the teacher's, too, and `train` the optimiser's state, so that
    evaluation reads only `model`; `check` the check sum of every array. Kept are the `NEWEST` steps and the best one by
    mIoU. Use as a context manager: leaving it waits for the pending write. Every method is called by all processes.
    """

    def __init__(self, workdir: AnyPath, *, create: bool = False):
        """Opens the run's checkpoints; with `create` for writing, too."""
        self._folder = absolute(workdir) / "checkpoints"
        self._create = create
        self._writer: ocp.CheckpointManager | None = None
        self._half_written: list[AnyPath] = []

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *rest: Any) -> None:
        if kind is None:
            processes.on_lead(self._close)
        elif self._writer is not None:  # the others may be elsewhere
            try:
                self._guard(self._writer.close)
            except UserError as error:
                if issubclass(kind, processes.Resume):
                    raise  # what was to be continued from is not there
                print(f"error: {error}", file=sys.stderr, flush=True)  # and the one on its way, which tells more

    def _close(self) -> None:
        if self._writer is not None:
            self._guard(self._writer.close)
            self._remove_half_written()

    def _manager(self, *, read_only: bool) -> ocp.CheckpointManager:
        mute_storage()
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(NEWEST),
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics[METRIC], n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        return ocp.CheckpointManager(
            self._folder,
            item_names=(*ITEMS, "check"),
            options=ocp.CheckpointManagerOptions(
                create=False,
                preservation_policy=policy,
                best_fn=lambda metrics: metrics[METRIC],
                best_mode="max",
                cleanup_tmp_directories=False,
                read_only=read_only,
                multiprocessing_options=_LEAD_ALONE,
            ),
        )

    def _steps(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal() and _is_whole(path))

    def _metric(self, step: int) -> float | None:
        try:
            return json.loads((self._folder / str(step) / "metrics" / "metrics").read_text())[METRIC]
        except (OSError, ValueError, KeyError, TypeError):  # saved without an evaluation, or damaged
            return None

    def find(self, which: str) -> int:
        """The step that `which` names: a number, "best" or "latest".

        Raises:
          UserError: when there is no such checkpoint; the sentence lists those that exist.
        """
        return processes.on_lead(lambda: self._find(which))

    def _find(self, which: str) -> int:
        steps = self._steps()
        if not steps:
            raise UserError(f"{self._folder} holds no checkpoint: train first, or check --workdir")
        if which == "latest":
            return steps[-1]
        if which == "best":
            measured = {step: metric for step in steps if (metric := self._metric(step)) is not None}
            if not measured:
                raise UserError(f"{self._folder} holds no checkpoint that was evaluated: use --step=latest")
            return max(measured, key=lambda step: (measured[step], step))
        if not which.isdecimal() or int(which) not in steps:
            raise UserError(f"--step={which} names no checkpoint of {self._folder}: use best, latest or one of {steps}")
        return int(which)

    def save(self, state: TrainState, miou: float | None) -> None:
        """Starts to write the state of `state.step`, with its validation mIoU where it was measured.

        Returns before the write has ended; the state may be donated at once.

        Raises:
          UserError: when this write cannot begin, or the one before has failed.
        """
        processes.on_lead(lambda: self._save(state, miou))

    def _save(self, state: TrainState, miou: float | None) -> None:
        if self._writer is None:
            self._half_written = self._find_half_written()
            self._guard(lambda: self._folder.mkdir(parents=True, exist_ok=True))
            self._writer = self._manager(read_only=False)
        step, host = int(state.step), jax.device_get(state)
        items = {name: {field: getattr(host, field) for field in fields} for name, fields in ITEMS.items()}
        arguments = ocp.args.Composite(
            check=ocp.args.JsonSave({name: check_sums(item) for name, item in items.items()}),
            **{name: ocp.args.StandardSave(item) for name, item in items.items()},
        )
        metrics = None if miou is None else {METRIC: float(miou)}
        if not self._guard(lambda: self._writer.save(step, args=arguments, metrics=metrics)):
            raise RuntimeError(f"step {step} was not saved: a checkpoint of this or a later step exists")

    def _guard(self, write: Callable) -> Any:
        """write(), whose failures, and those of the writes behind it, are sentences."""
        try:
            return write()
        except Exception as error:  # the libraries raise whatever they like
            raise UserError(
                f"a checkpoint cannot be written to {self._folder} ({_reason(error)}): make room or make it writable, "
                "then start the same command again; it continues after the newest complete checkpoint"
            ) from error

    def _find_half_written(self) -> list[AnyPath]:
        if not self._folder.is_dir():
            return []
        if is_local(self._folder):
            return list(self._folder.glob(_HALF_WRITTEN))
        return [path for path in self._folder.iterdir() if path.name.isdecimal() and not _is_whole(path)]

    def _remove_half_written(self) -> None:
        """What a killed process has left is no use, and goes once there is a newer complete checkpoint."""
        while self._half_written:
            path = self._half_written.pop()
            if is_local(path) or not _is_whole(path):  # in a bucket the same step is written again in its place
                epath.Path(path).rmtree(missing_ok=True)

    def restore_newest(self, like: TrainState, say: Callable[[str], None] = print) -> TrainState | None:
        """The newest state that is undamaged, or None where there is no checkpoint at all.

        Newer ones that are damaged are named with `say`, and put aside as `damaged_<step>`, not deleted.

        Args:
          like: a state of the same structure, whose shapes, types and shardings are used.

        Raises:
          UserError: when there are checkpoints, and all are damaged: a run never starts from scratch in silence.
        """
        found = {}

        def search() -> dict:
            damaged = {}
            for step in reversed(self._steps()):
                try:
                    found.update(self._read(step, dict(ITEMS), like._asdict()))
                    break
                except _Damaged as reason:
                    damaged[step] = str(reason)
            told = "; ".join(f"step {step} {reason}" for step, reason in damaged.items())
            if damaged and not found:
                raise UserError(
                    f"{self._folder} has no checkpoint to continue from: {told}. Nothing was deleted: restore one of "
                    "them, or start again in a new --workdir"
                )
            if damaged and self._create:
                for step in damaged:
                    self._guard(lambda step=step: self._put_aside(step))
            return {"told": told, "step": int(found["step"]) if found else None}

        result = processes.on_lead(search)
        if result["told"]:
            aside = ", put aside as damaged_<step>" if self._create else ""
            say(f"warning: {result['told']}{aside}; continuing from step {result['step']}")
        if result["step"] is None:
            return None
        return TrainState(**_place(found, like._asdict()))

    def _put_aside(self, step: int) -> None:
        number, target = 1, self._folder / f"damaged_{step}"
        while target.exists():
            number, target = number + 1, self._folder / f"damaged_{step}_{number + 1}"
        (self._folder / str(step)).rename(target)

    def restore_model(self, step: int, like: dict[str, Tree]) -> dict[str, Tree]:
        """{"params", "batch_stats", "teacher"} of `step`; the argument gives shapes, types and shardings.

        Raises:
          UserError: when the checkpoint is damaged; the sentence says how.
        """
        found = {}

        def read() -> None:
            try:
                found.update(self._read(step, {"model": ITEMS["model"]}, like))
            except _Damaged as reason:
                others = [other for other in self._steps() if other != step]
                raise UserError(
                    f"the checkpoint of step {step} in {self._folder} {reason}: choose another with --step, of "
                    f"{others or 'which there is none'}"
                ) from reason

        processes.on_lead(read)
        return _place(found, like)

    def _read(self, step: int, items: dict[str, tuple[str, ...]], like: dict[str, Tree]) -> dict[str, Tree]:
        """The fields of some items as numpy arrays.

        Raises:
          _Damaged: it cannot be read, its sums are not those that were stored, or it is of another network.
        """
        if not any((self._folder / str(step)).iterdir()):
            raise _Damaged("is an empty folder")
        targets = {
            name: jax.tree.map(lambda x: np.empty(x.shape, x.dtype), {field: like[field] for field in fields})
            for name, fields in items.items()
        }
        try:
            with self._manager(read_only=True) as reader:
                sums = reader.restore(step, args=ocp.args.Composite(check=ocp.args.JsonRestore()))["check"]
                for name, target in targets.items():
                    _compare_paths(sums[name], check_sums(target))
                arguments = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
                restored = reader.restore(step, args=ocp.args.Composite(**arguments))
        except _Damaged:
            raise
        except Exception as error:  # Orbax and its storage raise a dozen types, bare Exception among them
            raise _Damaged(f"cannot be read ({_reason(error)})") from error
        for name in items:
            _compare_shapes(restored[name], targets[name])
            actual = check_sums(restored[name])
            wrong = [path for path in actual if actual[path] != sums[name][path]]
            if wrong:
                raise _Damaged(f"has changed since it was written: {len(wrong)} arrays, {wrong[0]} the first")
        return {field: value for name in items for field, value in restored[name].items()}


def _is_whole(step: AnyPath) -> bool:
    """On a disk a step has its name when it is whole; in a bucket, which knows no renaming, Orbax marks it then."""
    return is_local(step) or (step / "commit_success.txt").exists()


def _compare_paths(stored: dict[str, int], expected: dict[str, int]) -> None:
    for what, paths in (("has", stored.keys() - expected.keys()), ("lacks", expected.keys() - stored.keys())):
        if paths:
            raise _Damaged(f"is of another network: it {what} {min(paths)} and {len(paths) - 1} others")


def _compare_shapes(stored: Tree, expected: Tree) -> None:
    """Orbax gives arrays of numpy as they are stored, whatever shape is asked for."""
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(stored), jax.tree.leaves(expected), strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            where = jax.tree_util.keystr(path)
            raise _Damaged(
                f"is of another network: {where} has shape {x.shape} ({x.dtype}), expected {y.shape} ({y.dtype})"
            )


def _reason(error: Exception) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    if len(text) > 300:  # tensorstore begins with the array and ends with the reason
        text = f"{text[:80]} ... {text[-200:]}"
    return f"{type(error).__name__}: {text}"


def _place(fields: dict[str, Tree], like: dict[str, Tree]) -> dict[str, Tree]:
    """Arrays of the lead on the devices of all processes."""
    return jax.tree.map(
        lambda x, goal: jax.make_array_from_callback(goal.shape, goal.sharding, lambda index: x[index]),
        processes.broadcast(fields, like),
        like,
    )


def save_state(folder: AnyPath, state: TrainState) -> None:
    """Writes one state, and waits for it. A state that `folder` holds is replaced."""

    def save() -> None:
        with ocp.StandardCheckpointer(multiprocessing_options=_LEAD_ALONE) as checkpointer:
            checkpointer.save(absolute(folder), jax.device_get(state)._asdict(), force=True)

    processes.on_lead(save)


def load_state(folder: AnyPath, like: TrainState) -> TrainState:
    """What `save_state` wrote. like: as in `Checkpoints.restore_newest`."""
    targets = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like._asdict())
    with ocp.StandardCheckpointer(multiprocessing_options=_LEAD_ALONE) as checkpointer:
        return TrainState(**_place(checkpointer.restore(absolute(folder), targets), like._asdict()))
