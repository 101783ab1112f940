"""A trained model from its run's folder alone, for evaluation and prediction."""

from typing import NamedTuple

import jax
import ml_collections

from pc2seg_jax import build, processes
from pc2seg_jax import workdir as workdir_lib
from pc2seg_jax.checkpoints import Checkpoints
from pc2seg_jax.errors import UserError
from pc2seg_jax.files import AnyPath
from pc2seg_jax.models.functional import Model
from pc2seg_jax.parallel import Shardings, make_shardings
from pc2seg_jax.types import Tree


class Run(NamedTuple):
    """A run and one of its checkpoints. teacher: {"params", "batch_stats"}, or {} where the run keeps none."""

    config: ml_collections.ConfigDict
    info: workdir_lib.DatasetInfo
    step: int
    model: Model
    params: Tree
    batch_stats: Tree
    teacher: Tree
    shardings: Shardings

    def with_network(self, which: str) -> "Run":
        """The run with the "student", its own network, or the "teacher" in place of it.

        Raises:
          UserError: when the run keeps no teacher.
        """
        if which == "student":
            return self
        if not self.teacher:
            raise UserError(
                "--network=teacher: the run keeps none (config.teacher_momentum is 0); use --network=student"
            )
        return self._replace(**self.teacher)


def find_step(workdir: AnyPath, which: str) -> int:
    """The step of the checkpoint `which` ("latest", "best" or a step).

    Raises:
      UserError: as `restore`.
    """
    processes.together(lambda: workdir_lib.load(workdir))
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.find(which)


def restore(workdir: AnyPath, which: str, shardings: Shardings | None = None) -> Run:
    """Restores the checkpoint `which` ("latest", "best" or a step) of a run.

    Raises:
      UserError: when the folder is not a run's, or has no such checkpoint.
    """
    config, info = processes.together(lambda: workdir_lib.load(workdir))
    shardings = shardings or make_shardings()
    model = build.build_model(config, len(info.class_names))
    shapes = dict(zip(("params", "batch_stats"), jax.eval_shape(model.init, jax.random.key(0)), strict=True))
    shapes |= {"teacher": dict(shapes) if config.teacher_momentum else {}}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings.replicated), shapes)
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.find(which)
        restored = checkpoints.restore_model(step, shapes)
    return Run(config, info, step, model, **restored, shardings=shardings)
