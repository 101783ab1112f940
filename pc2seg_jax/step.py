"""The pure functions that a run compiles: initial state, training step, evaluation step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from pc2seg_jax.models.functional import Model
from pc2seg_jax.ops.metrics import confusion_matrix
from pc2seg_jax.parallel import Shardings
from pc2seg_jax.resize import resize_bilinear
from pc2seg_jax.types import Array, Batch, Labeled, TrainState, Tree


def make_init(
    model: Model, optimizer: optax.GradientTransformation, *, with_teacher: bool, shardings: Shardings
) -> Callable:
    """`init(seed) -> TrainState`, every leaf replicated over the mesh (a leaf without would compile the step twice)."""

    def init(seed: Array) -> TrainState:
        params, batch_stats = model.init(jax.random.key(seed))
        teacher = {"params": params, "batch_stats": batch_stats} if with_teacher else {}
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), teacher)

    return jax.jit(init, out_shardings=shardings.replicated)


def make_train_step(
    model: Model,
    objective: Callable,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    teacher_momentum: float,
    shardings: Shardings,
) -> Callable:
    """`train_step(state, batch) -> (state, metrics)`, jitted over the mesh with the state donated.

    A pure function: its randomness is fold_in(seed, step). Metrics are float32 scalars of the global batch.

    Args:
      objective: `(model, params, batch_stats, batch, key, teacher=...) -> (loss, (batch_stats, metrics))`.
      teacher_momentum: m of teacher <- m * teacher + (1 - m) * (params, batch_stats), where the state has a teacher.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_fn(params: Tree) -> tuple[Array, tuple[Tree, dict]]:
            return objective(model, params, state.batch_stats, batch, key, teacher=state.teacher)

        gradients, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics["learning_rate"] = schedule(state.step)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        params = optax.apply_updates(state.params, updates)
        teacher = state.teacher
        if teacher:
            student = {"params": params, "batch_stats": batch_stats}
            teacher = optax.incremental_update(student, teacher, 1.0 - teacher_momentum)
        return TrainState(state.step + 1, params, batch_stats, opt_state, teacher), metrics

    replicated = shardings.replicated
    return jax.jit(
        train_step, donate_argnums=0, in_shardings=(replicated, shardings.data), out_shardings=(replicated, replicated)
    )


def predict_probabilities(model: Model, params: Tree, batch_stats: Tree, images: Array) -> Array:
    """Class probabilities at image resolution, [B, H, W, C] float32, with running batch-norm statistics."""
    outputs, _ = model.apply(params, batch_stats, images, train=False)
    return jax.nn.softmax(resize_bilinear(outputs.logits, images.shape[1:3]))


def make_eval_step(model: Model, *, num_classes: int, ignore_id: int, shardings: Shardings) -> Callable:
    """`eval_step(params, batch_stats, batch) -> [C, C]` confusion matrix of the batch (rows: truth), jitted."""

    def eval_step(params: Tree, batch_stats: Tree, batch: Labeled) -> Array:
        probabilities = predict_probabilities(model, params, batch_stats, batch.image)
        return confusion_matrix(batch.label, probabilities.argmax(-1), num_classes=num_classes, ignore_id=ignore_id)

    replicated = shardings.replicated
    return jax.jit(eval_step, in_shardings=(replicated, replicated, shardings.data), out_shardings=replicated)
