"""The one costly part of the contrastive loss, with a gradient of its own: anchors against their drawn negatives."""

import functools

import jax
import jax.numpy as jnp

from pc2seg_jax.ops.losses import NOT_DRAWN

# Down to this temperature, e^((q - p) / temperature) of any two cosines, and a sum of millions of them, is a float32.
SMALLEST_TEMPERATURE = 0.03


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def compare_with_negatives(
    anchors: jax.Array, positive: jax.Array, candidates: jax.Array, drawn: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """log sum_n e^((q_n - p) / temperature), by which the drawn negatives outweigh the positive.

    The loss of eq. 4 is log(1 + e^ratio). What is kept for the gradient is the matrix of e^(q_n - p) alone, in the
    type of the features: both gradients are products with it, and nothing is computed twice.

    Args:
      anchors: [A, D] unit vectors. candidates: [J, D] unit vectors of the same type, in which the products are taken;
        they are summed in float32.
      positive: [A] float32, cosine of every anchor and its positive.
      drawn: [A, J] bool. temperature: tau of eq. 4, > 0.

    Returns:
      ratio: [A] float32, -1e30 where nothing is drawn, or all terms are below float32. cosines: [A] float32, their sum
      over the drawn negatives, without gradient.
    """
    return _forward(anchors, positive, candidates, drawn, temperature)[0]


def _forward(anchors, positive, candidates, drawn, temperature):
    cosine = jnp.matmul(anchors, candidates.T, preferred_element_type=jnp.float32)
    reference = positive
    if temperature < SMALLEST_TEMPERATURE:
        reference = jnp.max(jnp.where(drawn, cosine, positive[:, None]), axis=-1)
    terms = jnp.where(drawn, jnp.exp((cosine - reference[:, None]) / temperature), 0.0)
    total = jnp.sum(terms, axis=-1)
    ratio = jnp.log(jnp.where(total == 0, 1.0, total)) + (reference - positive) / temperature
    ratio = jnp.where(total == 0, NOT_DRAWN, ratio)
    cosines = jnp.sum(jnp.where(drawn, cosine, 0.0), axis=-1)
    return (ratio, cosines), (anchors, candidates, terms.astype(anchors.dtype), total)


def _backward(temperature, kept, gradients):
    anchors, candidates, terms, total = kept
    slope = jnp.where(total == 0, 0.0, gradients[0]) / temperature
    share = (slope / jnp.where(total == 0, 1.0, total))[:, None]
    of_anchors = share * jnp.matmul(terms, candidates, preferred_element_type=jnp.float32)
    scaled = (share * anchors.astype(jnp.float32)).astype(anchors.dtype)
    of_candidates = jnp.matmul(terms.T, scaled, preferred_element_type=candidates.dtype)
    return of_anchors.astype(anchors.dtype), -slope, of_candidates, None


compare_with_negatives.defvjp(_forward, _backward)
