"""The training objectives. `pc2seg` is the method of the paper in one function."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pc2seg_jax.models.functional import Model
from pc2seg_jax.ops.contrastive import pixel_contrast
from pc2seg_jax.ops.image_contrast import image_contrast
from pc2seg_jax.ops.losses import (
    Average,
    average_per_class,
    cosine_consistency,
    cosine_distance,
    cross_entropy,
    cross_entropy_consistency,
    masked_average,
)
from pc2seg_jax.parallel import map_groups
from pc2seg_jax.resize import resize_bilinear, subsample_nearest
from pc2seg_jax.streams import average, join, split
from pc2seg_jax.types import Array, Batch, GroupSpan, Labeled, Outputs, Tree, Unlabeled

LABEL_LOSSES = {"cosine": cosine_consistency, "cross_entropy": cross_entropy_consistency}
PAIRS_ON_GPU = 2**29  # 2 GB for each of the float32 arrays in work
FEATURE_LOSSES = ("pixel_contrast", "pixel_consistency", "image_contrast")


class Result(NamedTuple):
    """What an objective finds on a batch, or on one part of it.

    terms: {name: Average}, to log and to learn from; those of the parts of a batch add up to the batch's. Terms with
      one mean per class are for the log alone.
    weights: of the terms that make the loss. The counts of these depend on the data alone, never on the network.
    moments: of batch normalisation, of every group [G, C] or of their mean [1, C], stream by stream in the order in
      which they enter the running statistics.
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


class FeatureSettings(NamedTuple):
    """The feature-space loss of `pc2seg`, weighted by lambda_1, under the names of the configuration.

    feature_loss: of `FEATURE_LOSSES` (columns of Tab. 9). The others: of `ops.contrastive`, where sampling is `method`.
    """

    feature_loss: str
    contrast_temperature: float
    num_negatives: int
    strategy: str
    sampling: str
    window: int


def _feature_terms(
    views: dict[str, Array],
    keys: Array,
    span: GroupSpan,
    *,
    settings: FeatureSettings,
    ignore_id: int,
    pairs_at_once: int,
    dtype: jnp.dtype,
) -> dict[str, tuple[Array, Array]]:
    """{term: (values, mask)} of one layer for `map_groups`; the loss is called "loss".

    Args:
      views: weak, strong [G, g', h, w, D] projected features, probs, valid, label [G, g', h, w, ...].
      pairs_at_once, dtype: see `pixel_contrast`.
    """
    weak, strong, valid = views["weak"], views["strong"], views["valid"]
    if settings.feature_loss == "pixel_consistency":
        return {"loss": (cosine_distance(weak, strong), valid)}
    if settings.feature_loss == "image_contrast":
        return {"loss": image_contrast(weak, strong, valid, temperature=settings.contrast_temperature, span=span)}
    values, mask, stats = pixel_contrast(
        weak,
        strong,
        views["probs"],
        valid,
        keys,
        strategy=settings.strategy,
        num_negatives=settings.num_negatives,
        temperature=settings.contrast_temperature,
        method=settings.sampling,
        window=settings.window,
        label=views["label"],
        ignore_id=ignore_id,
        pairs_at_once=pairs_at_once,
        dtype=dtype,
        span=span,
    )
    terms = {
        "loss": (values, stats.valid),
        "positive_cosine": (stats.positive_cosine, mask),
        "negative_cosine": (stats.negative_cosine, mask),
        "num_negatives": (stats.num_negatives, stats.valid),
        "num_candidates": (stats.num_candidates, stats.valid),
        "exact_fraction": (stats.exact, stats.valid),
        "scarce_fraction": (stats.num_candidates < settings.num_negatives, stats.valid),
        # The loss of features that tell nothing: all cosines are equal.
        "loss_at_chance": (jnp.log1p(stats.num_negatives), stats.valid),
    }
    if views["label"] is not None:
        terms["false_negative_rate"] = (stats.false_negative_rate, stats.measured)
    return terms


def _feature_losses(
    weak: dict[str, Array],
    strong: dict[str, Array],
    probabilities: Array,
    unlabeled: Unlabeled,
    keys: Array,
    *,
    settings: FeatureSettings,
    ignore_id: int,
    group_size: int,
    mesh: Mesh | None,
    dtype: jnp.dtype,
) -> tuple[dict[str, Average], tuple[str, ...]]:
    """The feature-space losses of all layers (projected features by layer) with what else to log, and their names."""
    terms, losses = {}, []
    # Launching the kernels of one block after the other takes a GPU longer than the work in them.
    pairs_at_once = PAIRS_ON_GPU if mesh is not None and mesh.devices.flat[0].platform == "gpu" else 0
    kind = {"pixel_consistency": "feature_consistency", "image_contrast": "image_contrast"}
    for layer in weak:
        cells = weak[layer].shape[1:3]
        views = {
            "weak": weak[layer],
            "strong": strong[layer],
            "probs": resize_bilinear(probabilities, cells),
            "valid": subsample_nearest(unlabeled.valid, cells) > 0,
            "label": None if unlabeled.label is None else subsample_nearest(unlabeled.label, cells),
        }
        function = functools.partial(
            _feature_terms, settings=settings, ignore_id=ignore_id, pairs_at_once=pairs_at_once, dtype=dtype
        )
        found = map_groups(function, views, keys, group_size=group_size, mesh=mesh)
        name = kind.get(settings.feature_loss, "contrast")
        # One layer is the rule; where there are several, each has its own lines in the log.
        name = name if len(weak) == 1 else f"{name}_{layer}"
        averages = {term: masked_average(values, mask) for term, (values, mask) in found.items()}
        terms[f"loss/{name}"] = averages.pop("loss")
        losses.append(f"loss/{name}")
        terms |= {f"{name}/{term}": average for term, average in averages.items()}
    return terms, tuple(losses)


def _describe_pseudo_labels(logits: Array, valid: Array, label: Array | None, ignore_id: int) -> dict[str, Average]:
    """What the weak view predicts: confidence, share of every class, and accuracy where there is ground truth."""
    probabilities = jax.lax.stop_gradient(jax.nn.softmax(logits))
    predicted = probabilities.argmax(-1)
    members = average_per_class(jnp.ones(predicted.shape, jnp.float32), predicted, valid, logits.shape[-1])
    all_valid = jnp.sum(valid, dtype=jnp.float32)
    terms = {
        "pseudo_label/confidence": masked_average(probabilities.max(-1), valid),
        "pseudo_label/share": Average(members.total, jnp.broadcast_to(all_valid, members.total.shape)),
    }
    if label is not None:
        terms["pseudo_label/accuracy"] = masked_average(predicted == label, valid & (label != ignore_id))
    return terms


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
    features: FeatureSettings,
    consistency_weight: float,
    label_loss: str,
    sharpening_temperature: float,
    mesh: Mesh | None = None,
) -> Result:
    """L = CE(labelled) + lambda_1 * contrast(weak, strong) + lambda_2 * consistency(weak, strong), eqs. 1-4.

    The weak view is a forward pass without gradient; its logits are the pseudo-labels of the consistency loss and
    weight the negatives, and its features reach the feature-space loss through a projection head of their own, which is
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
      label_loss: of `LABEL_LOSSES`, weighted by lambda_2 (rows of Tab. 9).
      mesh: the devices that may share a group.
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
        join(labeled.image, unlabeled.strong, blocks),
        train=True,
        keys=join(keys.labeled, keys_strong, blocks),
    )
    outputs, strong = split(joined, num_labeled, num_unlabeled, blocks)
    moments_labeled, moments_strong = average(moments, *groups, blocks)

    terms, weights = {"loss/supervised": _supervised_loss(outputs, labeled, ignore_id)}, {"loss/supervised": 1.0}
    cells = weak.logits.shape[1:3]
    valid = subsample_nearest(unlabeled.valid, cells) > 0
    label = None if unlabeled.label is None else subsample_nearest(unlabeled.label, cells)
    terms |= _describe_pseudo_labels(weak.logits, valid, label, ignore_id)
    if consistency_weight:
        distance = LABEL_LOSSES[label_loss](weak.logits, strong.logits, temperature=sharpening_temperature)
        terms["loss/consistency"] = masked_average(distance, valid)
        terms["consistency"] = average_per_class(distance, weak.logits.argmax(-1), valid, weak.logits.shape[-1])
        weights["loss/consistency"] = consistency_weight
    if contrast_weight:
        projected = (
            model.project(params, view.features, branch=branch) for view, branch in ((weak, "weak"), (strong, "strong"))
        )
        measured, losses = _feature_losses(
            *projected,
            jax.nn.softmax(weak.logits),
            unlabeled,
            keys_negatives[::group_size],
            settings=features,
            ignore_id=ignore_id,
            group_size=group_size,
            mesh=mesh,
            dtype=jax.tree.leaves(strong.features)[0].dtype,  # that of the network's activations
        )
        terms |= measured
        weights |= dict.fromkeys(losses, contrast_weight)
    return Result(terms, weights, (moments_labeled, *(() if teacher else (moments_weak,)), moments_strong))


OBJECTIVES = {"pc2seg": pc2seg, "supervised": supervised}
