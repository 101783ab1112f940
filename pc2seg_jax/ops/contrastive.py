"""The pixel contrastive loss (eq. 4) over groups of images.

Method "window": every block of anchors looks at the beginning of a stream of candidates (`arrivals`), the same for all
of its anchors; what an anchor draws from the whole stream has the law of "full", and only those marginals enter a sum
over anchors. An anchor that finds N negatives in the beginning has drawn what it would draw from the whole. One with
fewer keeps these, which are the first of that draw, and is counted as not exact: nothing is drawn in place of what was
not looked at. Method "full": every anchor looks at all candidates with clocks of its own, also where a window would
hold them all.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pc2seg_jax.ops.arrivals import draw_from_arrivals
from pc2seg_jax.ops.blocks import Layout, cut_into_blocks, draw_windows, join_blocks, largest_divisor, lay_out
from pc2seg_jax.ops.info_nce import compare_with_negatives
from pc2seg_jax.ops.losses import NOT_DRAWN, unit_vectors
from pc2seg_jax.ops.sampling import (
    Candidates,
    draw_mask,
    exponential_clocks,
    gumbel_top_k,
    sampling_weights,
)
from pc2seg_jax.types import GroupSpan

METHODS = ("window", "full")


class ContrastStats(NamedTuple):
    """What to log, one value per anchor, [G, g, K, h, w] each; average with `masked_mean` and the mask named.

    positive_cosine, negative_cosine: -1..1, the latter a mean over the drawn negatives (mask: the second result).
    false_negative_rate: 0..1, share of the drawn negatives of known class that are of the anchor's class (`measured`).
    measured: bool, the anchor's class and at least one drawn negative's are known.
    num_negatives, num_candidates: float32, drawn negatives, and candidates of non-zero weight, where the window holds a
      part of them an estimate from these, without bias (`valid`).
    exact: bool, nothing that belongs to the draw is missing (`valid`); never set by "window" for an anchor with fewer
      candidates than N, of which a window cannot tell.
    valid: bool, the anchor is a valid pixel. The loss is averaged over these: see `pixel_contrast`.
    """

    positive_cosine: jax.Array
    negative_cosine: jax.Array
    false_negative_rate: jax.Array
    measured: jax.Array
    num_negatives: jax.Array
    num_candidates: jax.Array
    exact: jax.Array
    valid: jax.Array


class _Pixels(NamedTuple):
    """Pixels of a group: unit vectors z [..., D], and per pixel what `sampling.Candidates` knows of it.

    number: int32, place among the group's anchors and candidates, ordered by view, image, cell.
    """

    z: jax.Array
    number: jax.Array
    probs: jax.Array
    valid: jax.Array
    label: jax.Array | None


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
    method: str = "window",
    window: int = 0,
    label: jax.Array | None = None,
    ignore_id: int = 255,
    block_size: int = 0,
    pairs_at_once: int = 0,
    dtype: jnp.dtype = jnp.float32,
    span: GroupSpan | None = None,
) -> tuple[jax.Array, jax.Array, ContrastStats]:
    """InfoNCE of every pixel of both views, -log(e^p / (e^p + sum_n e^q_n)), p and q_n cosines / temperature.

    The positive is the same pixel in the other view; the negatives are drawn from both views of the anchor's group, and
    never gathered: similarities are a matrix product, the drawn set is a mask. Blocks of anchors come one by one.

    Args:
      weak, strong: [G, g', h, w, D] projected features of the images at hand, any float type; normalised here.
      probs: [G, g', h, w, C] float32 class probabilities of the weak view at feature resolution; no gradient.
      valid: [G, g', h, w] bool; invalid pixels are neither anchors nor negatives.
      keys: [G], one random key per group.
      strategy, method: a key of `sampling.STRATEGIES`; of `METHODS`, see above.
      num_negatives, temperature: N and tau of eq. 4; an anchor with fewer candidates than N uses those it has.
      window: candidates per block of anchors; 0: `blocks.choose_window`. A window that holds all is "full".
      label: [G, g', h, w] int32 ground truth for `oracle` and for `false_negative_rate`, or None.
      ignore_id: label value of pixels without ground truth; negative labels are unknown too.
      block_size: anchors per block, about, all of one image; 0: 256, or 32 g. The variance of "window" grows with it.
      pairs_at_once: "window" takes so many blocks side by side as have this many pairs of anchor and candidate, or one:
        for devices that one block does not keep busy. The result does not depend on it.
      dtype: float type of the features in the products with negatives, in JAX's default precision, summed in float32.
      span: where the other images of the groups are; None: all are at hand. The result does not depend on it.

    Returns:
      loss: [G, g', K, h, w] float32, K = 2 views, weak first; 0 where the mask is not set. Its mean over
        `stats.valid` is the loss: a valid anchor without a negative counts with 0 (eq. 4 with an empty sum).
      mask: bool, valid anchors with at least one negative.
      stats: `ContrastStats`.

    Raises:
      ValueError: unknown strategy, or `oracle` without labels.
    """
    span = span or GroupSpan()
    anchors, candidates = _pixels(weak, strong, probs, valid, label, ignore_id, span)
    images = candidates.number.shape[1] // (2 * math.prod(weak.shape[2:4]))
    layout = lay_out((images, *weak.shape[2:4]), strategy, num_negatives, method, window, block_size)
    at_once = pairs_at_once // (len(weak) * layout.block_size * layout.width)

    def of_block(anchors: _Pixels, positive, candidates: _Pixels, draw):
        weights = sampling_weights(strategy, _known(anchors, layout), _known(candidates, layout))
        positive, (drawn, possible) = jnp.sum(anchors.z * positive, axis=-1), draw(weights)
        a, b = anchors.z.astype(dtype), candidates.z.astype(dtype)
        compared = compare_with_negatives(a, positive, b, drawn, temperature)
        return _info_nce(anchors, positive, *compared, drawn, possible, candidates.label)

    def of_group(anchors: _Pixels, positive: jax.Array, candidates: _Pixels, key: jax.Array):
        def look_at_all(block):
            draw = functools.partial(_draw_from_all, key, block[0].number, num_negatives)
            return of_block(*block, candidates, draw)

        def look_at_a_window(block):
            *pixels, arrivals = block
            return of_block(*pixels, lambda weights: draw_from_arrivals(arrivals, weights, num_negatives))

        blocks = jax.tree.map(lambda x: cut_into_blocks(x, layout.blocks), (anchors, positive))
        if layout.whole:
            return jax.lax.map(jax.checkpoint(look_at_all, prevent_cse=False), blocks)
        places, arrivals = draw_windows(key, span.first + jnp.arange(weak.shape[1]), layout)
        seen = jax.tree.map(lambda x: x[places], candidates)
        seen = seen._replace(z=seen.z.astype(dtype))  # cast here, the gradients of a candidate add up in float32
        side_by_side = largest_divisor(len(places), at_once)
        return jax.lax.map(look_at_a_window, (*blocks, seen, arrivals), batch_size=side_by_side)

    results = jax.vmap(of_group)(anchors, anchors.z[:, ::-1], candidates, keys)
    loss, mask, stats = jax.tree.map(lambda x: join_blocks(x, weak.shape[:4]), results)
    possible = stats.num_candidates * (layout.eligible / layout.width)
    exact = layout.whole | (stats.num_negatives >= num_negatives)
    return loss, mask, stats._replace(num_candidates=possible, exact=exact)


def _draw_from_all(key: jax.Array, number: jax.Array, n: int, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `draw_from_arrivals` returns, with clocks of its own for every anchor and candidate: [A] and [A, M]."""
    clocks = exponential_clocks(jax.vmap(jax.random.fold_in, (None, 0))(key, number), weights.shape[1])
    return draw_mask(clocks, weights, n), jnp.sum(weights > 0, axis=-1)


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
    Arguments, results, errors: as `pixel_contrast` with method "full", with the same draws for the same keys.
    """
    anchors, candidates = _pixels(weak, strong, probs, valid, label, ignore_id, GroupSpan())
    layout = lay_out(weak.shape[1:4], strategy, num_negatives, "full")

    def of_group(group):
        pixels, positive, key = group
        known = _known(pixels, layout)
        weights = sampling_weights(strategy, known, known)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, pixels.number)
        index, drawn = gumbel_top_k(exponential_clocks(keys, len(pixels.number)), weights, num_negatives)
        positive = jnp.sum(pixels.z * positive, axis=-1)
        cosine = jnp.sum(pixels.z[:, None, :] * pixels.z[index], axis=-1)
        logits = jnp.where(drawn, cosine / temperature, NOT_DRAWN)
        compared = jax.nn.logsumexp(logits, axis=-1) - positive / temperature, jnp.sum(cosine * drawn, axis=-1)
        label = None if pixels.label is None else pixels.label[index]
        return _info_nce(pixels, positive, *compared, drawn, jnp.sum(weights > 0, axis=-1), label)

    positive = anchors.z[:, ::-1].reshape(candidates.z.shape)
    results = jax.lax.map(of_group, (candidates, positive, keys))
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, 2, *weak.shape[1:4]), 1, 2), results)


def _pixels(weak, strong, probs, valid, label, ignore_id, span: GroupSpan) -> tuple[_Pixels, _Pixels]:
    """The pixels at hand, [G, K, g', cells, ...], and those of the whole groups in one row, [G, M, ...]."""

    def flat(x):
        return x.reshape(*x.shape[:2], -1, *x.shape[4:])

    def views_first(z, shown):
        z, shown = jnp.moveaxis(z, 2, 1), jax.tree.map(lambda x: jnp.stack([x, x], axis=1), shown)
        return z, *shown

    z = jnp.stack([unit_vectors(flat(x).astype(jnp.float32)) for x in (weak, strong)], axis=2)
    label = None if label is None else flat(jnp.where(label == ignore_id, -1, label.astype(jnp.int32)))
    shown = jax.lax.stop_gradient(flat(probs.astype(jnp.float32))), flat(valid.astype(bool)), label
    all_z, *all_shown = views_first(*jax.tree.map(span.gather, (z, shown)))
    z, *shown = views_first(z, shown)

    number = jnp.arange(math.prod(all_z.shape[1:4]), dtype=jnp.int32).reshape(all_z.shape[1:4])
    number = jnp.broadcast_to(number, all_z.shape[:4])
    at_hand = jax.lax.dynamic_slice_in_dim(number, span.first, weak.shape[1], axis=2)
    together = jax.tree.map(lambda x: x.reshape(len(x), -1, *x.shape[4:]), _Pixels(all_z, number, *all_shown))
    return _Pixels(z, at_hand, *shown), together


def _known(pixels: _Pixels, layout: Layout) -> Candidates:
    pixel = pixels.number % (layout.candidates // 2)
    return Candidates(pixel // layout.cells, pixel, pixels.probs, pixels.valid, pixels.label)


def _info_nce(anchors: _Pixels, positive, ratio, cosines, drawn, possible, label):
    """Loss, mask and statistics of A anchors: `compare_with_negatives`, and [J] or [A, J] labels of J candidates."""
    num_drawn = jnp.sum(drawn, axis=-1, dtype=jnp.float32)
    mask = anchors.valid & (num_drawn > 0)
    loss = jnp.where(mask, jax.nn.softplus(ratio), 0.0)
    if label is None:
        false, known = jnp.zeros_like(num_drawn), jnp.zeros_like(num_drawn)
    else:
        anchor_label = anchors.label[:, None]
        both_known = drawn & (label >= 0) & (anchor_label >= 0)
        known = jnp.sum(both_known, axis=-1, dtype=jnp.float32)
        false = jnp.sum(both_known & (label == anchor_label), axis=-1, dtype=jnp.float32)
    stats = ContrastStats(
        positive_cosine=positive,
        negative_cosine=cosines / jnp.maximum(num_drawn, 1.0),
        false_negative_rate=false / jnp.maximum(known, 1.0),
        measured=known > 0,
        num_negatives=num_drawn,
        num_candidates=possible.astype(jnp.float32),
        exact=jnp.ones_like(mask),
        valid=anchors.valid,
    )
    return loss, mask, jax.lax.stop_gradient(stats)
