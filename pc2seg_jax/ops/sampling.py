"""Which pixels serve as negatives: the sampling weights of Sec. 3.2.1 and drawing without replacement.

With clocks E_j ~ Exp(1), the n smallest of E_j / w_j are n draws without replacement with probabilities proportional
to w_j. This race and the Gumbel top-k trick are the same draw: log w_j - log E_j is a Gumbel perturbed log-weight.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# 1 - y.y of two identical one-hot vectors is a few units of float32 round-off, not 0. A weight below this is taken as
# 0: a pair that is surely of one class must never be drawn, however few other candidates there are.
SMALLEST_WEIGHT = 1e-6


class Candidates(NamedTuple):
    """The M = K * P pixels of one group, K = 2 views (weak first) of P pixels; they are also the anchors.

    image: [M] int32, image inside the group. pixel: [M] int32, pixel inside the group (the same in both views).
    probs: [M, C] float32, class probabilities of the weak view (the same in both views). valid: [M] bool.
    label: [M] int32 ground truth, negative = unknown, for `oracle` and for measuring only; None = all unknown.
    """

    image: jax.Array
    pixel: jax.Array
    probs: jax.Array
    valid: jax.Array
    label: jax.Array | None = None


def uniform(anchors: Candidates, candidates: Candidates) -> jax.Array:
    """Weight 1 for every pixel but the anchor's own, in either view (Sec. 3.2.1 "Uniform"): [A, M] float32."""
    return (anchors.pixel[:, None] != candidates.pixel[None, :]).astype(jnp.float32)


def different_image(anchors: Candidates, candidates: Candidates) -> jax.Array:
    """Weight 1 for the pixels of other images (eq. 6): [A, M] float32."""
    return (anchors.image[:, None] != candidates.image[None, :]).astype(jnp.float32)


def class_disagreement(anchors: Candidates, candidates: Candidates) -> jax.Array:
    """Probability that two pixels differ in class, 1 - y_i . y_j: [A, M] float32, 0..1, exactly 0 below 1e-6.

    Full float32 products: a bfloat16 product is wrong by 1e-2, which would let pixels of one class be drawn.
    """
    agreement = jnp.matmul(anchors.probs, candidates.probs.T, precision=jax.lax.Precision.HIGHEST)
    # fmin: a probability that is not a number gives 1. Nothing drawn for it would hide it from the loss.
    weights = jnp.fmin(1.0 - agreement, 1.0)
    return jnp.where(weights < SMALLEST_WEIGHT, 0.0, weights)


def pseudo_label(anchors: Candidates, candidates: Candidates) -> jax.Array:
    """Weight 1 - y_i . y_j, the anchor's own pixel excluded (eq. 7): [A, M] float32."""
    return uniform(anchors, candidates) * class_disagreement(anchors, candidates)


def different_image_pseudo_label(anchors: Candidates, candidates: Candidates) -> jax.Array:
    """Weight 1 - y_i . y_j for the pixels of other images (eq. 8): [A, M] float32."""
    return different_image(anchors, candidates) * class_disagreement(anchors, candidates)


def oracle(anchors: Candidates, candidates: Candidates) -> jax.Array:
    """Weight 1 where both ground-truth classes are known and differ (Tab. 5): [A, M] float32.

    Raises:
      ValueError: the candidates carry no ground truth.
    """
    if anchors.label is None or candidates.label is None:
        raise ValueError("strategy 'oracle' needs ground-truth labels of the unlabelled images, and there are none")
    known = (anchors.label >= 0)[:, None] & (candidates.label >= 0)[None, :]
    return (known & (anchors.label[:, None] != candidates.label[None, :])).astype(jnp.float32)


STRATEGIES = {
    "uniform": uniform,
    "different_image": different_image,
    "pseudo_label": pseudo_label,
    "different_image_pseudo_label": different_image_pseudo_label,
    "oracle": oracle,
}
OF_OTHER_IMAGES = ("different_image", "different_image_pseudo_label")  # strategies without negatives of the own image


def sampling_weights(strategy: str, anchors: Candidates, candidates: Candidates) -> jax.Array:
    """Un-normalised sampling weights w_ij of candidate j for anchor i; 0 where either pixel is invalid.

    Args:
      strategy: a key of `STRATEGIES`.
      anchors: A pixels of the group.
      candidates: M pixels of the same group.

    Returns:
      [A, M] float32 in 0..1, without gradient. p_ij of eq. 6-8 is w_ij / sum_k w_ik.

    Raises:
      ValueError: unknown strategy, or `oracle` without ground truth.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown sampling strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    weights = STRATEGIES[strategy](anchors, candidates)
    both_valid = anchors.valid[:, None] & candidates.valid[None, :]
    return jax.lax.stop_gradient(jnp.where(both_valid, weights, 0.0))


def to_uniform(bits: jax.Array) -> jax.Array:
    """Uniform numbers 0 < u < 1, float32, from [...] uint32: from all 32 bits, unlike `jax.random.uniform` from 23.

    The small ones decide the draw: among 8712 candidates, 23 bits give several exact ties per anchor.
    """
    return jnp.minimum(bits.astype(jnp.float32) * 2.0**-32 + 2.0**-33, 1.0 - 2.0**-24)


def exponential_clocks(keys: jax.Array, m: int) -> jax.Array:
    """Independent Exp(1) clocks, -log(1 - u), one key per anchor: they do not depend on how anchors are chunked.

    Args:
      keys: [A] random keys.
      m: number of clocks per key.

    Returns:
      [A, m] float32, > 0 and finite.
    """
    bits = jax.vmap(lambda key: jax.random.bits(key, (m,), jnp.uint32))(keys)
    return -jnp.log1p(-to_uniform(bits))


def gumbel_top_k(clocks: jax.Array, weights: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Draws without replacement in the literal form, the n largest log w_ij + Gumbel_ij with Gumbel = -log E.

    Args:
      clocks: [A, M] float32, `exponential_clocks`.
      weights: [A, M] float32, >= 0.
      n: negatives per anchor.

    Returns:
      index: [A, min(n, M)] int32 candidates. drawn: [A, min(n, M)] bool, False for surplus entries, which a row with
      fewer than n positive weights has.

    Source: end of Sec. 3.2.1.
    """
    log_weights = jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1.0)), -jnp.inf)
    score, index = jax.lax.top_k(log_weights - jnp.log(clocks), min(n, clocks.shape[1]))
    return index, score > -jnp.inf


def draw_mask(clocks: jax.Array, weights: jax.Array, n: int) -> jax.Array:
    """Draws without replacement as a mask: the n smallest E_ij / w_ij of every row, w = 0 never.

    Args:
      clocks: [A, M] or [M] float32, `exponential_clocks`.
      weights: [A, M] float32, 0 or 1e-6..1.
      n: negatives per anchor, >= 1.

    Returns:
      [A, M] bool. A row with fewer than n candidates has all of those. Candidates that tie exactly with the n-th are
      all drawn (about once in 1e5 rows of 8712 candidates).
    """
    race = jnp.where(weights > 0, clocks / jnp.where(weights > 0, weights, 1.0), jnp.inf)
    latest = jnp.max(jnp.where(race < jnp.inf, race, 0.0), axis=1)
    threshold = jax.lax.platform_dependent(
        race,
        latest,
        cuda=lambda race, latest: nth_smallest_by_selection(race, latest, n),
        default=lambda race, latest: nth_smallest_by_search(race, latest, n),
    )
    return (race <= threshold[:, None]) & (weights > 0)


def nth_smallest_by_selection(race: jax.Array, latest: jax.Array, n: int) -> jax.Array:
    """The n-th smallest of every row, at most `latest`: [A, J], [A] -> [A].

    For GPUs: they select fast, and would wait for the host in every pass of a search whose length depends on the data.
    """
    smallest = jax.lax.top_k(-race, min(n, race.shape[1]))[0]
    return jnp.minimum(-smallest[:, -1], latest) if n <= race.shape[1] else latest


def nth_smallest_by_search(race: jax.Array, latest: jax.Array, n: int) -> jax.Array:
    """A time that exactly the n smallest of every row have reached, ties apart, at most `latest`: [A, J], [A] -> [A].

    Compare-and-count passes, by interpolation and, every third pass, bisection on the bits of non-negative float32
    numbers, which order like integers: about ten passes instead of a sort (on a sharded array `lax.top_k` gathers the
    whole operand), at most three times 31.
    """

    def count(time: jax.Array) -> jax.Array:
        return jnp.sum(race <= time[:, None], axis=1, dtype=jnp.int32)

    def unfinished(low, high, found_high):
        return (found_high > n) & (_to_bits(high) - _to_bits(low) > 1)

    def narrow(state):
        turn, low, high, found_low, found_high = state
        share = (n - 0.5 - found_low.astype(low.dtype)) / jnp.maximum(found_high - found_low, 1).astype(low.dtype)
        middle = (_to_bits(low) + _to_bits(high)) // 2
        guess = jnp.where(turn % 3 == 2, middle, _to_bits(low + share * (high - low)))
        guess = jax.lax.bitcast_convert_type(jnp.clip(guess, _to_bits(low) + 1, _to_bits(high) - 1), jnp.float32)
        found = count(guess)
        active = unfinished(low, high, found_high)
        left, right = active & (found < n), active & (found >= n)
        return (
            turn + 1,
            jnp.where(left, guess, low),
            jnp.where(right, guess, high),
            jnp.where(left, found, found_low),
            jnp.where(right, found, found_high),
        )

    nothing = jnp.zeros(len(race), jnp.int32)
    start = (jnp.int32(0), jnp.zeros_like(latest), latest, nothing, count(latest))
    return jax.lax.while_loop(lambda s: jnp.any(unfinished(s[1], s[2], s[4])), narrow, start)[2]


def _to_bits(time: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(time, jnp.int32)
