"""The state a run starts from: its last checkpoint, a former run, published weights, or nothing but random numbers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from pc2seg_jax import processes
from pc2seg_jax.checkpoints import Checkpoints
from pc2seg_jax.errors import UserError
from pc2seg_jax.files import path_of
from pc2seg_jax.parallel import Shardings
from pc2seg_jax.restoring import restore
from pc2seg_jax.types import TrainState, Tree
from pc2seg_jax.weights import placement


def initialize(
    config: ml_collections.ConfigDict, class_names: tuple[str, ...], params: Tree, batch_stats: Tree
) -> tuple[Tree, Tree, str]:
    """Replaces the parts of a network that `config.init_from` names.

    A former run of ours gives the network of its last checkpoint; anything else is read by `placement.load`.

    Args:
      class_names: of the data to train on; the logits of a former run are kept where they are for the same classes.
      params, batch_stats: trees of the network, freshly initialised.

    Returns:
      (params, batch_stats, text): new trees; what was replaced, for the log.

    Raises:
      UserError: in all processes, when there is nothing to read, or it does not fit the network.
    """
    name = config.init_from
    try:
        if processes.on_lead(lambda: (path_of(name) / "config.json").is_file()):
            run = restore(path_of(name), "latest")
            values = jax.device_get(placement.flatten(run.params, run.batch_stats))
            weights = placement.Weights(values, f"{path_of(name)} (step {run.step})", run.info.class_names)
        else:
            weights = processes.together(lambda: placement.load(name, config.model.backbone, params, batch_stats))
        return processes.together(lambda: placement.place(weights, params, batch_stats, class_names))
    except UserError as error:
        raise processes.Agreed(f"config.init_from={name!r}: {error}") from error


def starting_state(
    config: ml_collections.ConfigDict,
    class_names: tuple[str, ...],
    init: Callable,
    checkpoints: Checkpoints,
    shardings: Shardings,
) -> tuple[TrainState, str]:
    """The state of the last checkpoint, else that of step 0 with `config.init_from` in it; and which, for the log."""
    state = init(config.seed)
    restored = checkpoints.restore_newest(state)
    if restored is not None:
        return restored, f"checkpoint of step {int(restored.step)}"
    if not config.init_from:
        return state, "random weights"
    params, batch_stats, text = initialize(config, class_names, state.params, state.batch_stats)
    params, batch_stats = jax.device_put((params, batch_stats), shardings.replicated)
    # Copies, because the step donates every leaf of the state.
    teacher = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if state.teacher else {}
    return state._replace(params=params, batch_stats=batch_stats, teacher=teacher), text
