"""The pure functions that a run compiles: initial state, training step, evaluation step."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from pc2seg_jax.models.functional import Model
from pc2seg_jax.objective import Result
from pc2seg_jax.ops.boundary import boundary_counts
from pc2seg_jax.ops.calibration import CalibrationCounts, calibration_counts
from pc2seg_jax.ops.metrics import confusion_matrices
from pc2seg_jax.ops.views import labeled_views, make_views
from pc2seg_jax.parallel import Shardings
from pc2seg_jax.types import Array, Batch, Crops, LabeledCrops, TrainState, Tree


def make_init(
    model: Model, optimizer: optax.GradientTransformation, *, with_teacher: bool, shardings: Shardings
) -> Callable:
    """`init(seed) -> TrainState`, every leaf replicated over the mesh (a leaf without would compile the step twice)."""

    def init(seed: Array) -> TrainState:
        params, batch_stats = model.init(jax.random.key(seed))
        teacher = {"params": params, "batch_stats": batch_stats} if with_teacher else {}
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), teacher)

    return jax.jit(init, out_shardings=shardings.replicated)


def take_part(tree: Tree, part: Array, *, parts: int, group_size: int) -> Tree:
    """Every `parts`-th group of images, beginning with group `part`, of each leaf [B, ...]: [B / parts, ...].

    Groups rather than a run of images: a device that holds a multiple of `parts` groups finds its share at home.
    """

    def take(x: Array) -> Array:
        grouped = x.reshape(-1, parts, group_size, *x.shape[1:])
        return jax.lax.dynamic_index_in_dim(grouped, part, 1, keepdims=False).reshape(-1, *x.shape[1:])

    return jax.tree.map(take, tree)


def image_keys(key: Array, crops: Crops) -> Batch:
    """One random key per image of a batch, in the places of the images: fold_in(fold_in(key, stream), row)."""

    def stream(number: int, images: Tree) -> Array:
        rows = jnp.arange(len(jax.tree.leaves(images)[0]))
        return jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, number), row))(rows)

    return Batch(stream(0, crops.labeled), None if crops.unlabeled is None else stream(1, crops.unlabeled))


def accumulate(function: Callable, parts: int) -> Tree:
    """sum over part = 0, ..., parts - 1 of function(part), which returns a tree; one part at a time."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, 0))
    return jax.lax.fori_loop(0, parts, lambda part, sums: jax.tree.map(jnp.add, sums, function(part)), zeros)


def make_gradient(objective: Callable, *, parts: int, group_size: int) -> Callable:
    """`gradient(params, crops, keys) -> (gradients, loss, terms, moments)` of a whole batch.

    With several parts the activations of one part are alive at a time. Nothing else changes: groups are normalised and
    draw their negatives on their own, dropout belongs to the image, and the loss divides by the counts of the whole
    batch, so the result is that of one part up to the order of summation.

    Args:
      objective: `(params, crops, keys) -> objective.Result`.
      parts: number of parts, which divides the number of groups of both streams.
      group_size: images per group.

    Returns of `gradient`: gradients as params; loss; terms {name: Average}; moments with G = 1, the groups' mean.
    """

    def of_part(params: Tree, crops: Crops, keys: Batch, counts: dict | None) -> tuple:
        def loss_fn(params: Tree) -> tuple[Array, tuple]:
            result = objective(params, crops, keys)
            loss = result.loss(counts or result.counts())
            moments = jax.tree.map(lambda x: jnp.mean(x, axis=0, keepdims=True) / parts, result.moments)
            return loss, (loss, result.terms, moments)

        gradients, (loss, terms, moments) = jax.grad(loss_fn, has_aux=True)(params)
        return gradients, loss, terms, moments

    def gradient(params: Tree, crops: Crops, keys: Batch) -> tuple[Tree, Array, dict, tuple]:
        if parts == 1:
            return of_part(params, crops, keys, None)

        def inputs(part: Array) -> tuple[Crops, Batch]:
            return take_part((crops, keys), part, parts=parts, group_size=group_size)

        # Counts depend on the data alone, so that the compiler removes the network from this loop.
        counts = accumulate(lambda part: objective(params, *inputs(part)).counts(), parts)
        return accumulate(lambda part: of_part(params, *inputs(part), counts), parts)

    return gradient


def make_binding(
    model: Model,
    objective: Callable,
    *,
    seed: int,
    mean_pixel: tuple[float, float, float],
    ignore_id: int,
    mask_cutout: bool,
) -> Callable:
    """`bind(state, crops) -> (evaluate, keys)`: what a step computes before it learns, with its own randomness.

    `evaluate(params, crops, keys) -> objective.Result` is for `make_gradient`; the crops may be a part of the batch.

    Args:
      objective: `(model, params, batch_stats, batch, keys, teacher=...) -> objective.Result`.
      mean_pixel, ignore_id, mask_cutout: see `make_views`.
    """

    def bind(state: TrainState, crops: Crops) -> tuple[Callable, Batch]:
        def evaluate(params: Tree, crops: Crops, keys: Batch) -> Result:
            batch = make_views(crops, mean_pixel=mean_pixel, ignore_id=ignore_id, mask_cutout=mask_cutout)
            return objective(model, params, state.batch_stats, batch, keys, teacher=state.teacher)

        return evaluate, image_keys(jax.random.fold_in(jax.random.key(seed), state.step), crops)

    return bind


def make_gradient_norms(bind: Callable, *, parts: int, group_size: int, shardings: Shardings) -> Callable:
    """`gradient_norms(state, crops) -> {"gradient_norm/<loss>": norm}` of every weighted loss alone, jitted.

    One backward pass per loss, so not a part of every step. Arguments as `make_train_step`.
    """

    def gradient_norms(state: TrainState, crops: Crops) -> dict[str, Array]:
        evaluate, keys = bind(state, crops)
        names = []
        jax.eval_shape(lambda: names.extend(evaluate(state.params, crops, keys).weights))
        norms = {}
        for name in names:

            def alone(*inputs: Tree, name: str = name) -> Result:
                result = evaluate(*inputs)
                return result._replace(weights={name: result.weights[name]})

            gradients = make_gradient(alone, parts=parts, group_size=group_size)(state.params, crops, keys)[0]
            norms[name.replace("loss/", "gradient_norm/")] = optax.tree.norm(gradients)
        return norms

    replicated = shardings.replicated
    return jax.jit(gradient_norms, in_shardings=(replicated, shardings.data), out_shardings=replicated)


def make_train_step(
    model: Model,
    bind: Callable,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    teacher_momentum: float,
    parts: int,
    group_size: int,
    shardings: Shardings,
) -> Callable:
    """`train_step(state, crops) -> (state, metrics)`, jitted over the mesh with the state donated.

    A pure function: its randomness is fold_in(seed, step). Metrics are float32 of the global batch, scalars or one
    value per class; nan where nothing was measured.

    A step whose loss or gradient is not finite changes nothing, and neither do the steps after it: the state's `step`
    turns negative, -1 - step, and `finite` of the metrics is 0.

    Args:
      bind: see `make_binding`. parts, group_size: see `make_gradient`.
      teacher_momentum: m of teacher <- m * teacher + (1 - m) * (params, batch_stats), where the state has a teacher.
    """

    def train_step(state: TrainState, crops: Crops) -> tuple[TrainState, dict]:
        evaluate, keys = bind(state, crops)
        gradient = make_gradient(evaluate, parts=parts, group_size=group_size)
        gradients, loss, terms, moments = gradient(state.params, crops, keys)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics = {"loss": loss} | {name: average.measured() for name, average in terms.items()}
        metrics["learning_rate"] = schedule(state.step)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(metrics["gradient_norm"]) & (state.step >= 0)
        metrics["finite"] = finite.astype(jnp.float32)
        params = optax.apply_updates(state.params, updates)
        batch_stats = functools.reduce(model.update_statistics, moments, state.batch_stats)
        teacher = state.teacher
        if teacher:
            student = {"params": params, "batch_stats": batch_stats}
            teacher = optax.incremental_update(student, teacher, 1.0 - teacher_momentum)
        updated = TrainState(state.step + 1, params, batch_stats, opt_state, teacher)
        stopped = state._replace(step=jnp.where(state.step >= 0, -1 - state.step, state.step))
        return jax.tree.map(functools.partial(jax.lax.select, finite), updated, stopped), metrics

    replicated = shardings.replicated
    return jax.jit(
        train_step, donate_argnums=0, in_shardings=(replicated, shardings.data), out_shardings=(replicated, replicated)
    )


class EvaluationCounts(NamedTuple):
    """What one image after the other adds to an evaluation.

    confusion: [B, C, C] int32, rows are the truth. boundary: [B, 3, C] int32, see `ops.boundary`. calibration: [B, K].
    """

    confusion: Array
    boundary: Array
    calibration: CalibrationCounts


def make_eval_step(
    probabilities: Callable,
    *,
    num_classes: int,
    mean_pixel: tuple[float, float, float],
    ignore_id: int,
    shardings: Shardings,
) -> Callable:
    """`eval_step(params, batch_stats, crops) -> EvaluationCounts` of every image of the batch, jitted.

    Args:
      probabilities: `(params, batch_stats, images) -> [B, H, W, C]`, see `inference.make_probabilities`.
    """

    def eval_step(params: Tree, batch_stats: Tree, crops: LabeledCrops) -> EvaluationCounts:
        batch = labeled_views(crops, mean_pixel=mean_pixel, ignore_id=ignore_id)
        probs = probabilities(params, batch_stats, batch.image)
        predictions = probs.argmax(-1).astype(jnp.int32)
        sizes = crops.window[:, 2:] - crops.window[:, :2]
        of_classes = {"num_classes": num_classes, "ignore_id": ignore_id}
        return EvaluationCounts(
            confusion_matrices(batch.label, predictions, **of_classes),
            boundary_counts(batch.label, predictions, sizes, **of_classes),
            calibration_counts(batch.label, probs, ignore_id=ignore_id),
        )

    replicated = shardings.replicated
    return jax.jit(eval_step, in_shardings=(replicated, replicated, shardings.data), out_shardings=replicated)
