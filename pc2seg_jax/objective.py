"""The training objectives. `pc2seg` is the method of the paper in one function."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pc2seg_jax.models.functional import Model
from pc2seg_jax.ops.contrastive import pixel_contrast
from pc2seg_jax.ops.losses import Average, cosine_consistency, cross_entropy, masked_average
from pc2seg_jax.resize import resize_bilinear, subsample_nearest
from pc2seg_jax.types import Array, Batch, Labeled, Outputs, Tree, Unlabeled


class Result(NamedTuple):
    """What an objective finds on a batch, or on one part of it.

    terms: {name: Average}, to log and to learn from; those of the parts of a batch add up to the batch's.
    weights: of the terms that make the loss. The counts of these depend on the data alone, never on the network.
    moments: of batch normalisation, stream by stream in the order in which they enter the running statistics.
    """

    terms: dict[str, Average]
    weights: dict[str, float]
    moments: tuple[Tree, ...]

    def counts(self) -> dict[str, Array]:
        """What the terms of the loss are divided by."""
        return {name: self.terms[name].count for name in self.weights}

    def loss(self, counts: dict[str, Array]) -> Array:
        """sum_t weight_t * total_t / count_t, [] float32, with the counts of the whole batch: parts add up."""
        return sum(
            weight * Average(self.terms[name].total, counts[name]).value() for name, weight in self.weights.items()
        )


def _supervised_loss(outputs: Outputs, labeled: Labeled, ignore_id: int) -> Average:
    """Cross-entropy at label resolution, over the pixels that are not ignored."""
    logits = resize_bilinear(outputs.logits, labeled.label.shape[1:])
    return masked_average(cross_entropy(logits, labeled.label, ignore_id=ignore_id), labeled.label != ignore_id)


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
    model: Model, params: Tree, batch_stats: Tree, batch: Batch, keys: Batch, *, ignore_id: int, **unused
) -> Result:
    """The baseline of the paper's tables: cross-entropy on labelled images alone.

    Arguments as `pc2seg`. Accepts and ignores the settings of the unlabelled losses, so that a baseline differs from
    its run in one key only.
    """
    del unused
    outputs, moments = model.apply(params, batch_stats, batch.labeled.image, train=True, keys=keys.labeled)
    terms = {"loss/supervised": _supervised_loss(outputs, batch.labeled, ignore_id)}
    return Result(terms, {"loss/supervised": 1.0}, (moments,))


def _contrast(
    weak: dict[str, Array],
    strong: dict[str, Array],
    probabilities: Array,
    unlabeled: Unlabeled,
    keys: Array,
    **settings,
) -> tuple[dict[str, Average], tuple[str, ...]]:
    """The contrastive losses of all layers (projected features by layer) with what else to log, and their names."""
    terms, losses = {}, []
    groups = len(keys)
    for layer in weak:
        cells = weak[layer].shape[1:3]
        labels = None if unlabeled.label is None else subsample_nearest(unlabeled.label, cells)
        valid = subsample_nearest(unlabeled.valid, cells) > 0
        tensors = weak[layer], strong[layer], resize_bilinear(probabilities, cells), valid
        values, mask, stats = pixel_contrast(
            *_to_groups(tensors, groups), keys, label=_to_groups(labels, groups), **settings
        )
        # One layer is the rule; where there are several, each has its own lines in the log.
        name = "contrast" if len(weak) == 1 else f"contrast_{layer}"
        losses.append(f"loss/{name}")
        terms[f"loss/{name}"] = masked_average(values, stats.valid)
        terms[f"{name}/positive_cosine"] = masked_average(stats.positive_cosine, mask)
        terms[f"{name}/negative_cosine"] = masked_average(stats.negative_cosine, mask)
        terms[f"{name}/num_negatives"] = masked_average(stats.num_negatives, stats.valid)
        terms[f"{name}/num_candidates"] = masked_average(stats.num_candidates, stats.valid)
        if labels is not None:
            terms[f"{name}/false_negative_rate"] = masked_average(stats.false_negative_rate, stats.measured)
    return terms, tuple(losses)


def pc2seg(
    model: Model,
    params: Tree,
    batch_stats: Tree,
    batch: Batch,
    keys: Batch,
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
) -> Result:
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
      batch: `B` labelled and `U` unlabelled images, or a part of such a batch that consists of whole groups.
      keys: one random key per image, [B] and [U], in the places of the images: all randomness of an image (dropout) or
        of a group (negatives: from its first image) comes from there, whatever else is in the batch.
      teacher: the state's, {"params", "batch_stats"} or {}.
      group_size: images per group; divides B and U.
    """
    labeled, unlabeled = batch
    keys_weak, keys_strong, keys_negatives = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys.unlabeled)
    num_labeled, num_unlabeled = labeled.image.shape[0], unlabeled.weak.shape[0]
    groups = num_labeled // group_size, num_unlabeled // group_size
    blocks = math.gcd(*groups)

    seer = teacher or {"params": jax.lax.stop_gradient(params), "batch_stats": batch_stats}
    weak, moments_weak = model.apply(**seer, images=unlabeled.weak, train=True, keys=keys_weak)
    weak = jax.lax.stop_gradient(weak)
    joined, moments = model.apply(
        params,
        batch_stats,
        _join(labeled.image, unlabeled.strong, blocks),
        train=True,
        keys=_join(keys.labeled, keys_strong, blocks),
    )
    outputs, strong = _split(joined, num_labeled, num_unlabeled, blocks)
    moments_labeled, moments_strong = _split(moments, *groups, blocks)

    terms, weights = {"loss/supervised": _supervised_loss(outputs, labeled, ignore_id)}, {"loss/supervised": 1.0}
    if consistency_weight:
        valid = subsample_nearest(unlabeled.valid, weak.logits.shape[1:3]) > 0
        distance = cosine_consistency(weak.logits, strong.logits, temperature=sharpening_temperature)
        terms["loss/consistency"] = masked_average(distance, valid)
        terms["pseudo_label/confidence"] = masked_average(jax.nn.softmax(weak.logits).max(-1), valid)
        weights["loss/consistency"] = consistency_weight
    if contrast_weight:
        projected = (
            model.project(params, view.features, branch=branch) for view, branch in ((weak, "weak"), (strong, "strong"))
        )
        measured, losses = _contrast(
            *projected,
            jax.nn.softmax(weak.logits),
            unlabeled,
            keys_negatives[::group_size],
            strategy=strategy,
            num_negatives=num_negatives,
            temperature=contrast_temperature,
            ignore_id=ignore_id,
        )
        terms |= measured
        weights |= dict.fromkeys(losses, contrast_weight)
    return Result(terms, weights, (moments_labeled, *(() if teacher else (moments_weak,)), moments_strong))


OBJECTIVES = {"pc2seg": pc2seg, "supervised": supervised}
