"""The pixel contrastive loss (eq. 4) over groups of images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pc2seg_jax.ops.sampling import Candidates, draw_mask, exponential_clocks, gumbel_top_k, sampling_weights

# Stands for "not drawn" inside a log-sum-exp. Finite, so that a row without any negative has gradient 0 and not nan.
NOT_DRAWN = -1e30


class ContrastStats(NamedTuple):
    """What to log, one value per anchor, [G, A] each; average with `masked_mean` and the mask named.

    positive_cosine, negative_cosine: -1..1, the latter a mean over the drawn negatives (mask: the second result).
    false_negative_rate: 0..1, share of the drawn negatives of known class that are of the anchor's class (`measured`).
    measured: bool, the anchor's class and at least one drawn negative's are known.
    num_negatives, num_candidates: float32, drawn negatives and candidates of non-zero weight (`valid`).
    valid: bool, the anchor is a valid pixel. The loss is averaged over these: see `pixel_contrast`.
    """

    positive_cosine: jax.Array
    negative_cosine: jax.Array
    false_negative_rate: jax.Array
    measured: jax.Array
    num_negatives: jax.Array
    num_candidates: jax.Array
    valid: jax.Array


class _Group(NamedTuple):
    """One group: unit vectors z [A, D], those of the same pixels in the other view, the pixels, one key per anchor."""

    z: jax.Array
    positive: jax.Array
    pixels: Candidates
    keys: jax.Array


def pixel_contrast(
    weak: jax.Array,
    strong: jax.Array,
    probs: jax.Array,
    valid: jax.Array,
    keys: jax.Array,
    *,
    strategy: str,
    num_negatives: int = 200,
    temperature: float = 0.07,
    label: jax.Array | None = None,
    ignore_id: int = 255,
    chunk_size: int = 1024,
) -> tuple[jax.Array, jax.Array, ContrastStats]:
    """InfoNCE of every pixel of both views, -log(e^p / (e^p + sum_n e^q_n)), p and q_n cosines / temperature.

    The positive is the same pixel in the other view; the negatives are drawn from both views of the anchor's group.
    They are never gathered: all similarities are one matrix product and the drawn set is a mask, so memory does not
    depend on `num_negatives`. Anchors are processed in chunks and rematerialised in the backward pass. The result
    depends on neither `chunk_size` nor the number of devices: anchor a of group g draws with fold_in(keys[g], a).

    Args:
      weak, strong: [G, g, h, w, D] projected features, any float type; normalised here.
      probs: [G, g, h, w, C] float32 class probabilities of the weak view at feature resolution; no gradient.
      valid: [G, g, h, w] bool; invalid pixels are neither anchors nor negatives.
      keys: [G], one random key per group.
      strategy: a key of `sampling.STRATEGIES`.
      num_negatives: N of eq. 4; an anchor with fewer candidates uses those it has.
      temperature: tau of eq. 4.
      label: [G, g, h, w] int32 ground truth for `oracle` and for `false_negative_rate`, or None.
      ignore_id: label value of pixels without ground truth; negative labels are unknown too.
      chunk_size: anchors per chunk.

    Returns:
      loss: [G, A] float32, A = 2 * g * h * w, weak anchors first; 0 where the mask is not set. Its mean over
        `stats.valid` is the loss: a valid anchor without any negative counts with 0, which is eq. 4 with an empty sum,
        so that what is divided by depends on the data alone.
      mask: [G, A] bool, valid anchors with at least one negative.
      stats: `ContrastStats`.

    Raises:
      ValueError: unknown strategy, or `oracle` without labels.
    """

    def of_anchors(anchors: _Group, group: _Group):
        weights = sampling_weights(strategy, anchors.pixels, group.pixels)
        drawn = draw_mask(exponential_clocks(anchors.keys, weights.shape[1]), weights, num_negatives)
        cosine = jnp.matmul(anchors.z, group.z.T, precision=jax.lax.Precision.HIGHEST)
        return _info_nce(anchors, weights, cosine, drawn, group.pixels.label, temperature)

    def of_group(group: _Group):
        num_anchors = group.z.shape[0]
        if num_anchors <= chunk_size:
            return of_anchors(group, group)
        # The backward pass repeats the whole draw. Keeping only the threshold of the race would be cheaper but wrong:
        # it is the last drawn candidate's own time, and a time recomputed with other rounding may miss it.
        body = jax.checkpoint(lambda anchors: of_anchors(anchors, group), prevent_cse=False)
        chunks = jax.tree.map(lambda x: _split(x, chunk_size), group)
        return jax.tree.map(lambda x: x.reshape(-1)[:num_anchors], jax.lax.map(body, chunks))

    return jax.vmap(of_group)(_groups(weak, strong, probs, valid, keys, label, ignore_id))


def pixel_contrast_literal(
    weak: jax.Array,
    strong: jax.Array,
    probs: jax.Array,
    valid: jax.Array,
    keys: jax.Array,
    *,
    strategy: str,
    num_negatives: int = 200,
    temperature: float = 0.07,
    label: jax.Array | None = None,
    ignore_id: int = 255,
) -> tuple[jax.Array, jax.Array, ContrastStats]:
    """The same loss as the paper writes it: Gumbel top-k, gather z[index], one group after the other.

    Needs [A, M] noise and [A, N, D] negatives at once (gigabytes at 513 x 513): a reference, not for training.
    Arguments, results, errors: as `pixel_contrast`, with the same draws for the same keys.
    """

    def of_group(group: _Group):
        weights = sampling_weights(strategy, group.pixels, group.pixels)
        index, drawn = gumbel_top_k(exponential_clocks(group.keys, weights.shape[1]), weights, num_negatives)
        cosine = jnp.sum(group.z[:, None, :] * group.z[index], axis=-1)
        label = None if group.pixels.label is None else group.pixels.label[index]
        return _info_nce(group, weights, cosine, drawn, label, temperature)

    return jax.lax.map(of_group, _groups(weak, strong, probs, valid, keys, label, ignore_id))


def _groups(weak, strong, probs, valid, keys, label, ignore_id) -> _Group:
    """All groups, flattened to pixels; every leaf has the leading axis G."""
    num_groups, images, height, width, _ = weak.shape
    num_pixels = images * height * width
    views = [_normalize(x.astype(jnp.float32).reshape(num_groups, num_pixels, -1)) for x in (weak, strong)]

    def both_views(x):
        x = x.reshape(num_groups, num_pixels, *x.shape[4:])
        return jnp.concatenate([x, x], axis=1)

    pixel = jnp.broadcast_to(jnp.arange(num_pixels, dtype=jnp.int32).reshape(images, height, width), valid.shape)
    pixels = Candidates(
        image=both_views(pixel // (height * width)),
        pixel=both_views(pixel),
        probs=both_views(jax.lax.stop_gradient(probs.astype(jnp.float32))),
        valid=both_views(valid.astype(bool)),
        label=None if label is None else both_views(jnp.where(label == ignore_id, -1, label.astype(jnp.int32))),
    )
    fold_in = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = jax.vmap(fold_in, in_axes=(0, None))(keys, jnp.arange(2 * num_pixels))
    return _Group(jnp.concatenate(views, axis=1), jnp.concatenate(views[::-1], axis=1), pixels, keys)


def _normalize(x: jax.Array) -> jax.Array:
    """Unit vectors along the last axis; a zero vector stays zero, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


def _split(x: jax.Array, chunk_size: int) -> jax.Array:
    """[A, ...] -> [chunks, chunk_size, ...]; the last chunk is filled with copies of the first anchors."""
    missing = -x.shape[0] % chunk_size
    return jnp.concatenate([x, x[:missing]]).reshape(-1, chunk_size, *x.shape[1:])


def _info_nce(anchors: _Group, weights, cosine, drawn, label, temperature):
    """Loss, mask and statistics of A anchors from the cosines to, and the labels ([J] or [A, J]) of, J candidates."""
    positive = jnp.sum(anchors.z * anchors.positive, axis=-1)
    negatives = jax.nn.logsumexp(jnp.where(drawn, cosine / temperature, NOT_DRAWN), axis=-1)
    mask = anchors.pixels.valid & jnp.any(drawn, axis=-1)
    # log(e^p + e^q) - p, written so that a small loss is not the difference of two large numbers.
    loss = jnp.where(mask, jax.nn.softplus(negatives - positive / temperature), 0.0)

    num_drawn = jnp.sum(drawn, axis=-1, dtype=jnp.float32)
    if label is None:
        false, known = jnp.zeros_like(num_drawn), jnp.zeros_like(num_drawn)
    else:
        anchor_label = anchors.pixels.label[:, None]
        both_known = drawn & (label >= 0) & (anchor_label >= 0)
        known = jnp.sum(both_known, axis=-1, dtype=jnp.float32)
        false = jnp.sum(both_known & (label == anchor_label), axis=-1, dtype=jnp.float32)
    stats = ContrastStats(
        positive_cosine=positive,
        negative_cosine=jnp.sum(jnp.where(drawn, cosine, 0.0), axis=-1) / jnp.maximum(num_drawn, 1.0),
        false_negative_rate=false / jnp.maximum(known, 1.0),
        measured=known > 0,
        num_negatives=num_drawn,
        num_candidates=jnp.sum(weights > 0, axis=-1, dtype=jnp.float32),
        valid=anchors.pixels.valid,
    )
    return loss, mask, jax.lax.stop_gradient(stats)
