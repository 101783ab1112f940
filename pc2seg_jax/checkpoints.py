"""Saving and restoring with Orbax: the last checkpoint and the best one."""

import pathlib

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from pc2seg_jax.errors import UserError
from pc2seg_jax.types import TrainState, Tree

METRIC = "miou"


class Checkpoints:
    """The checkpoints of one run, in `<workdir>/checkpoints/<step>/{model,train}`.

    `model` holds parameters and batch statistics, `train` the optimiser's state, so that evaluation reads only `model`.
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
            model=ocp.args.StandardSave({"params": state.params, "batch_stats": state.batch_stats}),
            train=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state, "teacher": state.teacher}),
        )
        if not self._manager.save(step, args=items, metrics={METRIC: float(miou)}):
            raise RuntimeError(f"step {step} was not saved: a checkpoint of this or a later step exists")

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The full state of `step`. like: a state of the same structure, whose shapes and shardings are used."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardRestore({"params": abstract.params, "batch_stats": abstract.batch_stats}),
                train=ocp.args.StandardRestore(
                    {"step": abstract.step, "opt_state": abstract.opt_state, "teacher": abstract.teacher}
                ),
            ),
        )
        return TrainState(**restored.model, **restored.train)

    def restore_model(self, step: int, params: Tree, batch_stats: Tree) -> tuple[Tree, Tree]:
        """(params, batch_stats) of `step`; the arguments give shapes, types and shardings."""
        abstract = {"params": params, "batch_stats": batch_stats}
        model = self._manager.restore(step, args=ocp.args.Composite(model=ocp.args.StandardRestore(abstract))).model
        return model["params"], model["batch_stats"]
