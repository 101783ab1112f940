"""Per-pixel losses, and the one way they are averaged."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Stands for "not drawn" inside a log-sum-exp. Finite, so that a row without any negative has gradient 0 and not nan.
NOT_DRAWN = -1e30


def cross_entropy(logits: jax.Array, labels: jax.Array, *, ignore_id: int) -> jax.Array:
    """Cross-entropy of every pixel, -log softmax(logits)[label], and 0 where the label is `ignore_id`.

    The logarithm is picked with a one-hot product, not with a gather.

    Args:
      logits: [..., C] of any float type; computed in float32.
      labels: [...] integers in 0..C-1, or `ignore_id`. Any other value also gives 0.
      ignore_id: the label of pixels without ground truth.

    Returns:
      [...] float32, >= 0. Average with `masked_mean(loss, labels != ignore_id)`.

    Source: the labelled term of eq. 1.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
    picked = (labels[..., None] == classes) & (labels != ignore_id)[..., None]
    # `where`, not a product: 0 * -inf is nan, and a logit of -inf is a legitimate way to forbid a class.
    return -jnp.sum(jnp.where(picked, log_probs, 0.0), axis=-1)


def _target(weak_logits: jax.Array, temperature: float) -> jax.Array:
    """The sharpened prediction of the weak view, without gradient."""
    return jax.lax.stop_gradient(jax.nn.softmax(weak_logits.astype(jnp.float32) / temperature, axis=-1))


def cosine_consistency(weak_logits: jax.Array, strong_logits: jax.Array, *, temperature: float = 0.5) -> jax.Array:
    """Consistency of the two views, 1 - cos(softmax(weak / temperature), softmax(strong)).

    No gradient reaches `weak_logits`: the sharpened weak prediction is the target.

    Args:
      weak_logits: [..., C] of any float type; computed in float32.
      strong_logits: [..., C].
      temperature: sharpening of the weak view only; below 1 sharpens.

    Returns:
      [...] float32, 0..1 up to rounding.

    Source: eq. 3; temperature 0.5 is the paper's.
    """
    weak, strong = _target(weak_logits, temperature), jax.nn.softmax(strong_logits.astype(jnp.float32), axis=-1)
    # C probabilities have a norm of at least 1 / sqrt(C), so values and gradients are finite without an epsilon.
    squares = jnp.sum(weak * weak, axis=-1) * jnp.sum(strong * strong, axis=-1)
    return 1.0 - jnp.sum(weak * strong, axis=-1) * jax.lax.rsqrt(squares)


def cross_entropy_consistency(
    weak_logits: jax.Array, strong_logits: jax.Array, *, temperature: float = 0.5
) -> jax.Array:
    """Consistency of the two views, -sum_c softmax(weak / temperature)_c log softmax(strong)_c.

    Arguments as `cosine_consistency`.

    Returns:
      [...] float32, >= 0; the entropy of the target where the views agree.

    Source: "Output CE" of Tab. 9.
    """
    log_probs = jax.nn.log_softmax(strong_logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(_target(weak_logits, temperature) * log_probs, axis=-1)


def cosine_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """1 - cos(a, b) of features [..., D]: [...] float32, 0..2; 1, without gradient, where |a| |b| is at most 1e-12.

    Source: "Pix Consist" of Tab. 9, the normalised squared distance between the features of a pixel in both views.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    squares = jnp.sum(a * a, axis=-1) * jnp.sum(b * b, axis=-1)
    return 1.0 - jnp.sum(a * b, axis=-1) * _inverse_root(squares, 1e-24)


def unit_vectors(x: jax.Array) -> jax.Array:
    """Unit vectors along the last axis; one that is no longer than 1e-6 becomes zero, without gradient."""
    return x * _inverse_root(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12)


def _inverse_root(x: jax.Array, smallest: float) -> jax.Array:
    """x ** -0.5, and 0 up to `smallest`: a bound instead would leave the zero vector a gradient of millions."""
    found = x > smallest
    return jnp.where(found, jax.lax.rsqrt(jnp.where(found, x, 1.0)), 0.0)


class Average(NamedTuple):
    """A mean as sum and count, so that it can be taken over the parts of a batch: add both, divide.

    total, count: [] float32 each, or [C] for one mean per class.
    """

    total: jax.Array
    count: jax.Array

    def value(self) -> jax.Array:
        """total / max(1, count): float32, 0 where nothing was counted."""
        return self.total / jnp.maximum(self.count, 1.0)

    def measured(self) -> jax.Array:
        """As `value`, but nan where nothing was counted."""
        return jnp.where(self.count > 0, self.value(), jnp.nan)


def masked_average(values: jax.Array, mask: jax.Array) -> Average:
    """Sum and count of the elements where `mask` is set.

    Args:
      values: [...] of any type; summed in float32. Masked values may be anything, even nan.
      mask: [...] bool or integers, non-zero = counted; same shape as `values`.

    Returns:
      `Average`. Under a sharded batch it is that of all devices.
    """
    chosen = mask.astype(bool)
    total = jnp.sum(jnp.where(chosen, values.astype(jnp.float32), 0.0))
    return Average(total, jnp.sum(chosen, dtype=jnp.float32))


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the elements where `mask` is set, [] float32; arguments as `masked_average`, 0 for an empty mask."""
    return masked_average(values, mask).value()


def average_per_class(values: jax.Array, classes: jax.Array, mask: jax.Array, num_classes: int) -> Average:
    """`masked_average` of the elements of every class, [C]; classes: [...] integers, of which others count nowhere."""
    members = (classes[..., None] == jnp.arange(num_classes)) & mask[..., None].astype(bool)
    axes = tuple(range(classes.ndim))
    total = jnp.sum(jnp.where(members, values[..., None].astype(jnp.float32), 0.0), axis=axes)
    return Average(total, jnp.sum(members, axis=axes, dtype=jnp.float32))
