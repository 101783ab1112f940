"""DeepLab-v3+: atrous spatial pyramid pooling with separable convolutions, decoder, logits at stride 4.

Source: Chen et al. 2018 and its release; the head is the one the paper trains.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pc2seg_jax.models.layers import ConvNorm, Pointwise, glorot_uniform, truncated
from pc2seg_jax.resize import resize_bilinear

# Of the release: layers that no ImageNet checkpoint provides.
DEPTHWISE_INIT = truncated(0.33)
POINTWISE_INIT = truncated(0.06)
LOGITS_INIT = truncated(0.01)


def preprocess(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any) -> jax.Array:
    """(x - mean) / std of RGB 0..255, as one product and one sum in float32 before the cast to `dtype`."""
    scale, offset = (np.asarray(values, np.float32) for values in (1 / np.asarray(std), np.divide(mean, std)))
    return (images.astype(jnp.float32) * scale - offset).astype(dtype)


class Decoder(nnx.Module):
    """Joins the encoder's output with the low-level feature at stride 4 and refines both by two separable convolutions.

    Call: encoder [B, h, w, head_width], low_level [B, h', w', F] and a size (h4, w4) -> [B, h4, w4, head_width].
    """

    def __init__(self, low_level_in: int, *, head_width: int, low_level_width: int, rngs: nnx.Rngs, **norm: Any):
        self.feature_projection0 = ConvNorm(
            low_level_in, low_level_width, kernel_init=glorot_uniform, rngs=rngs, **norm
        )
        channels_in = head_width + low_level_width
        for layer in range(2):
            depthwise, pointwise = separable(channels_in, head_width, dilation=1, rngs=rngs, **norm)
            setattr(self, f"decoder_conv{layer}_depthwise", depthwise)
            setattr(self, f"decoder_conv{layer}_pointwise", pointwise)
            channels_in = head_width

    def __call__(self, encoder: jax.Array, low_level: jax.Array, size: tuple[int, int], *, train: bool) -> jax.Array:
        low_level = self.feature_projection0(low_level, train=train)
        x = jnp.concatenate([resize_bilinear(encoder, size), resize_bilinear(low_level, size)], axis=-1)
        for layer in range(2):
            x = getattr(self, f"decoder_conv{layer}_depthwise")(x, train=train)
            x = getattr(self, f"decoder_conv{layer}_pointwise")(x, train=train)
        return x


def separable(
    channels_in: int, channels: int, *, dilation: int, rngs: nnx.Rngs, **norm: Any
) -> tuple[ConvNorm, ConvNorm]:
    """Depthwise 3x3 and pointwise 1x1 convolution, each with its own normalisation and ReLU."""
    depthwise = ConvNorm(
        channels_in,
        channels_in,
        kernel=3,
        dilation=dilation,
        depthwise=True,
        kernel_init=DEPTHWISE_INIT,
        rngs=rngs,
        **norm,
    )
    return depthwise, ConvNorm(channels_in, channels, kernel_init=POINTWISE_INIT, rngs=rngs, **norm)


class Head(nnx.Module):
    """Atrous spatial pyramid pooling, decoder and logits.

    Args:
      channels_in: of the backbone's last feature.
      low_level_in: of the low-level feature.
      num_classes: channels of the logits.
      head_width: channels of every pyramid branch and of the decoder.
      low_level_width: channels the low-level feature is reduced to.
      rates: dilations of the separable pyramid branches.
      dropout_rate: element-wise, after the pyramid's projection, in training only.
      norm: `epsilon`, `group_size` and `dtype` of every `ConvNorm`.
      rngs: unused but required by Flax.

    Call: feature [B, h, w, F], low_level, the size (h4, w4) of the logits, keys [B] -> dict of `encoder`
    [B, h, w, head_width] (before dropout), `decoder` [B, h4, w4, head_width], `logits` [B, h4, w4, C] float32.
    """

    def __init__(
        self,
        channels_in: int,
        low_level_in: int,
        *,
        num_classes: int,
        head_width: int,
        low_level_width: int,
        rates: tuple[int, ...],
        dropout_rate: float,
        rngs: nnx.Rngs,
        **norm: Any,
    ):
        glorot = {"kernel_init": glorot_uniform, "rngs": rngs, **norm}
        self.image_pooling = ConvNorm(channels_in, head_width, **glorot)
        self.aspp0 = ConvNorm(channels_in, head_width, **glorot)
        for branch, rate in enumerate(rates, start=1):
            depthwise, pointwise = separable(channels_in, head_width, dilation=rate, rngs=rngs, **norm)
            setattr(self, f"aspp{branch}_depthwise", depthwise)
            setattr(self, f"aspp{branch}_pointwise", pointwise)
        self.concat_projection = ConvNorm((2 + len(rates)) * head_width, head_width, **glorot)
        self.decoder = Decoder(low_level_in, head_width=head_width, low_level_width=low_level_width, rngs=rngs, **norm)
        self.logits = Pointwise(head_width, num_classes, kernel_init=LOGITS_INIT, rngs=rngs)
        self.branches = len(rates)
        self.dropout_rate = dropout_rate

    def __call__(
        self, x: jax.Array, low_level: jax.Array, size: tuple[int, int], *, train: bool, keys: jax.Array | None
    ) -> dict[str, jax.Array]:
        encoder = self.pyramid(x, train=train)
        dropped = encoder
        if train and self.dropout_rate > 0:
            if keys is None:
                raise ValueError("apply(train=True) needs keys for dropout; pass keys or set dropout_rate to 0.")
            keep = np.float32(1.0 - self.dropout_rate)
            # One key per image: what an image drops does not depend on the batch it is in.
            mask = jax.vmap(lambda key: jax.random.bernoulli(key, keep, encoder.shape[1:]))(keys)
            dropped = jnp.where(mask, encoder / keep, 0).astype(encoder.dtype)
        decoder = self.decoder(dropped, low_level, size, train=train)
        return {"encoder": encoder, "decoder": decoder, "logits": self.logits(decoder)}

    def pyramid(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, h, w, F] -> [B, h, w, head_width]; order of the branches: pooled image, 1x1, dilated by rising rate."""
        pooled = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        pooled = self.image_pooling(pooled, train=train)
        # In float32, as the gradient is a sum over all cells.
        pooled = jnp.broadcast_to(pooled.astype(jnp.float32), (*x.shape[:3], pooled.shape[-1])).astype(x.dtype)
        branches = [pooled, self.aspp0(x, train=train)]
        for branch in range(1, self.branches + 1):
            y = getattr(self, f"aspp{branch}_depthwise")(x, train=train)
            branches.append(getattr(self, f"aspp{branch}_pointwise")(y, train=train))
        return self.concat_projection(jnp.concatenate(branches, axis=-1), train=train)


class Projection(nnx.Module):
    """Linear maps of one contrast feature for the two views, one for each or, if shared, one for both.

    Call: branch "weak" or "strong", [B, h, w, F] -> [B, h, w, D] float32.
    """

    def __init__(self, channels_in: int, channels: int, *, shared: bool, rngs: nnx.Rngs):
        for name in ("shared",) if shared else ("weak", "strong"):
            setattr(self, name, Pointwise(channels_in, channels, kernel_init=glorot_uniform, rngs=rngs))
        self.is_shared = shared

    def __call__(self, branch: str, x: jax.Array) -> jax.Array:
        return getattr(self, "shared" if self.is_shared else branch)(x)


class Projections(nnx.Module):
    """The projection of every contrast layer, under the layer's name.

    Args:
      widths: channels of every contrast layer. channels: D. shared: one map for both views. rngs: unused but required
        by Flax.
    """

    def __init__(self, widths: dict[str, int], channels: int, *, shared: bool, rngs: nnx.Rngs):
        for layer, width in widths.items():
            setattr(self, layer, Projection(width, channels, shared=shared, rngs=rngs))


class DeepLabV3Plus(nnx.Module):
    """Backbone, head and projections under the names of the parameter tree.

    Call: images [B, H, W, 3] 0..255 -> dict of everything the backbone and the head return. The projections are not
    called: they see the features after the stop-gradient, which is the training step's business.
    """

    def __init__(
        self, backbone: nnx.Module, head: Head, projection: Projections, *, mean: tuple, std: tuple, dtype: Any
    ):
        self.backbone = backbone
        self.head = head
        self.projection = projection
        self.mean, self.std = mean, std
        self.dtype = dtype

    def __call__(self, images: jax.Array, *, train: bool, keys: jax.Array | None) -> dict[str, jax.Array]:
        features = self.backbone(preprocess(images, self.mean, self.std, self.dtype), train=train)
        size = tuple((side - 1) // 4 + 1 for side in images.shape[1:3])
        return features | self.head(features["conv5"], features["low_level"], size, train=train, keys=keys)
