"""The training objectives. `pc2seg` is the method of the paper in one function."""

import math

import jax
import jax.numpy as jnp

from pc2seg_jax.models.functional import Model
from pc2seg_jax.ops.contrastive import pixel_contrast
from pc2seg_jax.ops.losses import cosine_consistency, cross_entropy, masked_mean
from pc2seg_jax.resize import resize_bilinear, subsample_nearest
from pc2seg_jax.types import Array, Batch, Labeled, Outputs, Tree, Unlabeled


def _supervised_loss(outputs: Outputs, labeled: Labeled, ignore_id: int) -> Array:
    """Cross-entropy at label resolution, mean over the pixels that are not ignored."""
    logits = resize_bilinear(outputs.logits, labeled.label.shape[1:])
    return masked_mean(cross_entropy(logits, labeled.label, ignore_id=ignore_id), labeled.label != ignore_id)


def _to_groups(tree: Tree, blocks: int) -> Tree:
    return jax.tree.map(lambda x: x.reshape(blocks, -1, *x.shape[1:]), tree)


def _join(a: Array, b: Array, blocks: int) -> Array:
    """Joins two batches block by block: [blocks * a] and [blocks * b] images -> [blocks * (a + b)].

    Joining whole batches along the sharded axis would move images between devices; within a block nothing moves.
    """
    x = jnp.concatenate([_to_groups(a, blocks), _to_groups(b, blocks)], axis=1)
    return x.reshape(-1, *x.shape[2:])


def _split(tree: Tree, size_a: int, size_b: int, blocks: int) -> tuple[Tree, Tree]:
    """Undoes `_join` for every leaf, whose first axis counts images or groups."""
    a, b = size_a // blocks, size_b // blocks

    def part(x: Array, start: int, size: int) -> Array:
        return x.reshape(blocks, a + b, *x.shape[1:])[:, start : start + size].reshape(-1, *x.shape[1:])

    return jax.tree.map(lambda x: part(x, 0, a), tree), jax.tree.map(lambda x: part(x, a, b), tree)


def supervised(
    model: Model,
    params: Tree,
    batch_stats: Tree,
    batch: Batch,
    key: Array,
    *,
    ignore_id: int,
    **unused,
) -> tuple[Array, tuple[Tree, dict]]:
    """The baseline of the paper's tables: cross-entropy on labelled images alone.

    Accepts and ignores the settings of the unlabelled losses, so that a baseline differs from its run in one key only.

    Returns:
      (loss, (updated batch statistics, metrics)).
    """
    del unused
    outputs, moments = model.apply(params, batch_stats, batch.labeled.image, train=True, key=key)
    loss = _supervised_loss(outputs, batch.labeled, ignore_id)
    return loss, (model.update_statistics(batch_stats, moments), {"loss": loss, "loss/supervised": loss})


def _contrast(
    weak: dict[str, Array],
    strong: dict[str, Array],
    probabilities: Array,
    unlabeled: Unlabeled,
    key: Array,
    *,
    groups: int,
    **settings,
) -> tuple[Array, dict]:
    """The sum of the contrastive losses of all layers (projected features by layer), and what to log."""
    total, metrics = 0.0, {}
    for layer in weak:
        cells = weak[layer].shape[1:3]
        labels = None if unlabeled.label is None else subsample_nearest(unlabeled.label, cells)
        valid = subsample_nearest(unlabeled.valid, cells) > 0
        tensors = weak[layer], strong[layer], resize_bilinear(probabilities, cells), valid
        values, mask, stats = pixel_contrast(
            *_to_groups(tensors, groups), key, label=_to_groups(labels, groups), **settings
        )
        loss = masked_mean(values, mask)
        # One layer is the rule; where there are several, each has its own lines in the log.
        name = "contrast" if len(weak) == 1 else f"contrast_{layer}"
        metrics[f"loss/{name}"] = loss
        metrics[f"{name}/positive_cosine"] = masked_mean(stats.positive_cosine, mask)
        metrics[f"{name}/negative_cosine"] = masked_mean(stats.negative_cosine, mask)
        metrics[f"{name}/num_negatives"] = masked_mean(stats.num_negatives, stats.valid)
        metrics[f"{name}/num_candidates"] = masked_mean(stats.num_candidates, stats.valid)
        if labels is not None:
            metrics[f"{name}/false_negative_rate"] = masked_mean(stats.false_negative_rate, stats.measured)
        total = total + loss
    return total, metrics


def pc2seg(
    model: Model,
    params: Tree,
    batch_stats: Tree,
    batch: Batch,
    key: Array,
    *,
    teacher: Tree,
    group_size: int,
    ignore_id: int,
    contrast_weight: float,
    consistency_weight: float,
    contrast_temperature: float,
    sharpening_temperature: float,
    num_negatives: int,
    strategy: str,
) -> tuple[Array, tuple[Tree, dict]]:
    """L = CE(labelled) + lambda_1 * contrast(weak, strong) + lambda_2 * consistency(weak, strong), eqs. 1-4.

    The weak view is a forward pass without gradient; its logits are the pseudo-labels of the consistency loss and
    weight the negatives, and its features reach the contrastive loss through a projection head of their own, which is
    trained. Labelled and strong images share a second pass, each in groups of their own, so that batch normalisation
    never mixes the streams. The running statistics see labelled, weak and strong groups in this order. With a teacher,
    the weak view is the teacher's, which the statistics do not see; both projection heads remain the network's.
    Both unlabelled losses are means over valid pixels, not the sums of eq. 2, so that lambda does not depend on the
    image size. *Deviation* where the paper is silent: pixels under Cutout are not valid.

    Several contrast layers add up (Tab. 10), each with its own projections and the same draws where sizes agree.

    Args:
      batch: `B` labelled and `U` unlabelled images. group_size: images per group; divides both.
      teacher: the state's, {"params", "batch_stats"} or {}.

    Returns:
      (loss, (updated batch statistics, metrics)).
    """
    labeled, unlabeled = batch
    key_weak, key_strong, key_negatives = jax.random.split(key, 3)
    num_labeled, num_unlabeled = labeled.image.shape[0], unlabeled.weak.shape[0]
    groups = num_labeled // group_size, num_unlabeled // group_size
    blocks = math.gcd(*groups)

    seer = teacher or {"params": jax.lax.stop_gradient(params), "batch_stats": batch_stats}
    weak, moments_weak = model.apply(**seer, images=unlabeled.weak, train=True, key=key_weak)
    weak = jax.lax.stop_gradient(weak)
    joined, moments = model.apply(
        params, batch_stats, _join(labeled.image, unlabeled.strong, blocks), train=True, key=key_strong
    )
    outputs, strong = _split(joined, num_labeled, num_unlabeled, blocks)
    moments_labeled, moments_strong = _split(moments, *groups, blocks)
    for update in (moments_labeled, *(() if teacher else (moments_weak,)), moments_strong):
        batch_stats = model.update_statistics(batch_stats, update)

    loss = _supervised_loss(outputs, labeled, ignore_id)
    metrics = {"loss/supervised": loss}
    if consistency_weight:
        valid = subsample_nearest(unlabeled.valid, weak.logits.shape[1:3]) > 0
        distance = cosine_consistency(weak.logits, strong.logits, temperature=sharpening_temperature)
        metrics["loss/consistency"] = masked_mean(distance, valid)
        metrics["pseudo_label/confidence"] = masked_mean(jax.nn.softmax(weak.logits).max(-1), valid)
        loss = loss + consistency_weight * metrics["loss/consistency"]
    if contrast_weight:
        projected = (
            model.project(params, view.features, branch=branch) for view, branch in ((weak, "weak"), (strong, "strong"))
        )
        contrast, measured = _contrast(
            *projected,
            jax.nn.softmax(weak.logits),
            unlabeled,
            key_negatives,
            groups=groups[1],
            strategy=strategy,
            num_negatives=num_negatives,
            temperature=contrast_temperature,
            ignore_id=ignore_id,
        )
        metrics |= measured
        loss = loss + contrast_weight * contrast
    return loss, (batch_stats, {"loss": loss, **metrics})


OBJECTIVES = {"pc2seg": pc2seg, "supervised": supervised}
