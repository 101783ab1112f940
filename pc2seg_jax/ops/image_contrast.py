"""The contrastive loss of whole images, a column of Tab. 9."""

import jax
import jax.numpy as jnp

from pc2seg_jax.ops.losses import NOT_DRAWN, unit_vectors
from pc2seg_jax.types import GroupSpan


def image_contrast(
    weak: jax.Array, strong: jax.Array, valid: jax.Array, *, temperature: float = 0.07, span: GroupSpan | None = None
) -> tuple[jax.Array, jax.Array]:
    """InfoNCE of the pooled features of whole images; positive: the other view, negatives: the group's other images.

    Arguments as `pixel_contrast`; the features are averaged over the valid pixels (a linear projection may come before
    or after), and images without one take no part.

    Returns:
      loss: [G, g', K] float32; 0 where the mask is not set.
      mask: [G, g', K] bool, images with a valid pixel; eq. 4 with an empty sum where no other image has one.

    Source: "Img Contrast" of Tab. 9, after SimCLR (Chen et al. 2020), whose batch is the group here.
    """
    span = span or GroupSpan()
    inside = valid[..., None].astype(jnp.float32)
    some = jnp.any(valid, axis=(2, 3))
    pooled = [
        jnp.sum(x.astype(jnp.float32) * inside, axis=(2, 3)) / jnp.maximum(jnp.sum(inside, axis=(2, 3)), 1.0)
        for x in (weak, strong)
    ]
    z = jnp.stack([unit_vectors(x) for x in pooled], axis=2)
    others, others_some = span.gather(z), span.gather(some)
    cosine = jnp.einsum("gikd,gjld->gikjl", z, others)
    image, other = span.first + jnp.arange(z.shape[1]), jnp.arange(others.shape[1])
    drawn = (image[:, None] != other) & others_some[:, None, :]
    logits = jnp.where(drawn[:, :, None, :, None], cosine / temperature, NOT_DRAWN)
    negatives = jax.nn.logsumexp(logits, axis=(-2, -1))
    positive = jnp.sum(z * z[:, :, ::-1], axis=-1)
    mask = jnp.broadcast_to(some[..., None], positive.shape)
    return jnp.where(mask, jax.nn.softplus(negatives - positive / temperature), 0.0), mask
