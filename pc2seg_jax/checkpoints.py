"""Saving and restoring with Orbax: the last checkpoint and the best one."""

import pathlib

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from pc2seg_jax.errors import UserError
from pc2seg_jax.types import TrainState, Tree

METRIC = "miou"
MODEL, TRAIN = ("params", "batch_stats", "teacher"), ("step", "opt_state")  # fields of the state in either item


class Checkpoints:
    """The checkpoints of one run, in `<workdir>/checkpoints/<step>/{model,train}`.

    `model` holds parameters and batch statistics, the teacher's, too, and `train` the optimiser's state, so that
    evaluation reads only `model`.
    Kept are the latest step and the best one by mIoU. Use as a context manager: leaving it waits for the pending write.
    """

    def __init__(self, workdir: pathlib.Path, *, create: bool = False):
        """Opens the run's checkpoints, and makes the folder when `create` is set."""
        self._folder = workdir.absolute() / "checkpoints"
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(1),
                checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics[METRIC], n=1),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_names=("model", "train"),
            options=ocp.CheckpointManagerOptions(
                create=create,
                preservation_policy=policy,
                best_fn=lambda metrics: metrics[METRIC],
                best_mode="max",
                cleanup_tmp_directories=create,
                read_only=not create,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def find(self, which: str) -> int:
        """The step that `which` names: a number, "best" or "latest".

        Raises:
          UserError: when there is no such checkpoint; the sentence lists those that exist.
        """
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise UserError(f"{self._folder} holds no checkpoint: train first, or check --workdir")
        if which == "latest":
            return steps[-1]
        if which == "best":
            return self._manager.best_step()
        if not which.isdecimal() or int(which) not in steps:
            raise UserError(f"--step={which} names no checkpoint of {self._folder}: use best, latest or one of {steps}")
        return int(which)

    def save(self, state: TrainState, miou: float) -> None:
        """Starts to write the state of `state.step` with its validation mIoU; returns before the write has ended."""
        step = int(state.step)
        items = ocp.args.Composite(
            model=ocp.args.StandardSave({name: getattr(state, name) for name in MODEL}),
            train=ocp.args.StandardSave({name: getattr(state, name) for name in TRAIN}),
        )
        if not self._manager.save(step, args=items, metrics={METRIC: float(miou)}):
            raise RuntimeError(f"step {step} was not saved: a checkpoint of this or a later step exists")

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The full state of `step`. like: a state of the same structure, whose shapes and shardings are used."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardRestore({name: getattr(abstract, name) for name in MODEL}),
                train=ocp.args.StandardRestore({name: getattr(abstract, name) for name in TRAIN}),
            ),
        )
        return TrainState(**restored.model, **restored.train)

    def restore_model(self, step: int, like: dict[str, Tree]) -> dict[str, Tree]:
        """{"params", "batch_stats", "teacher"} of `step`; the argument gives shapes, types and shardings."""
        return self._manager.restore(step, args=ocp.args.Composite(model=ocp.args.StandardRestore(like))).model


def save_state(folder: pathlib.Path, state: TrainState) -> None:
    """Writes one state, and waits for it. A state that `folder` holds is replaced."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), state._asdict(), force=True)


def load_state(folder: pathlib.Path, like: TrainState) -> TrainState:
    """What `save_state` wrote. like: as in `Checkpoints.restore`."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like._asdict())
    with ocp.StandardCheckpointer() as checkpointer:
        return TrainState(**checkpointer.restore(folder.absolute(), abstract))
