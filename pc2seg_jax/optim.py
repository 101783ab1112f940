"""The paper lineage's optimiser: SGD with momentum, polynomial decay and coupled weight decay on some kernels."""

import jax
import optax

from pc2seg_jax.types import Tree


def decay_mask(params: Tree) -> Tree:
    """True for the tensors that are L2-decayed: convolution kernels except depthwise ones.

    A depthwise kernel is [kh, kw, 1, C] with kh > 1; batch-norm scales, offsets and biases are not decayed either.
    """

    def decayed(path, leaf) -> bool:
        return path[-1].key == "kernel" and not (leaf.ndim == 4 and leaf.shape[0] > 1 and leaf.shape[2] == 1)

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_schedule(*, learning_rate: float, power: float, steps: int) -> optax.Schedule:
    """learning_rate * (1 - step / steps) ** power, 0 from `steps` on; evaluated before the step counts itself."""
    return optax.polynomial_schedule(learning_rate, 0.0, power, steps)


def make_optimizer(schedule: optax.Schedule, *, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """v <- momentum * v + (g + weight_decay * w); w <- w - lr * v, no Nesterov.

    The decay is part of the gradient (L2 in the loss), as in the DeepLab code, and so passes through the momentum.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.trace(momentum),
        optax.scale_by_learning_rate(schedule),
    )
