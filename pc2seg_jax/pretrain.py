"""Pretrains a small backbone on procedural image classification: ImageNet's part for the embedded dataset.

python -m pc2seg_jax.pretrain --output=FILE.npz [--backbone=...] [--width=...] [--steps=N]

The task has the embedded dataset's renderer but none of its classes' forms and textures: 22 other forms and 14 other
textures, one object per image, in random colours; the form and the texture are to be named. The result is a file for
--config.init_from.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from pc2seg_jax import cli
from pc2seg_jax.data import synthetic
from pc2seg_jax.errors import UserError
from pc2seg_jax.models.backbones import BACKBONES
from pc2seg_jax.models.functional import Classifier, create_classifier
from pc2seg_jax.weights import placement

_OUTPUT = flags.DEFINE_string("output", None, "The .npz file to write.", required=True)
_BACKBONE = flags.DEFINE_enum("backbone", "resnet26_beta", sorted(BACKBONES), "The backbone to pretrain.")
_WIDTH = flags.DEFINE_integer("width", 16, "Channels of the first convolution.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 6000, "Training steps.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Images per step.", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 40_000, "Different training images.", lower_bound=1)
_RATE = flags.DEFINE_float("learning_rate", 3e-3, "Peak learning rate of the cosine schedule.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of images and weights.", lower_bound=0)

_HELD_OUT = 1000  # images with other indices than the training ones, to measure on
_FORMS, _TEXTURES = len(synthetic.PRETRAIN_FORMS), len(synthetic.PRETRAIN_TEXTURES)


def make_step(model: Classifier, optimizer: optax.GradientTransformation):
    """`step(carry, images uint8 [B, H, W, 3], labels [B, 2]) -> (carry, loss)`; carry = params, stats, opt_state.

    The loss is the sum of two cross-entropies, one for the form and one for the texture.
    """

    def step(carry, images, labels):
        params, stats, opt_state = carry

        def loss_fn(params):
            logits, moments = model.apply(params, stats, images.astype(jnp.float32), train=True)
            parts = (logits[:, :_FORMS], labels[:, 0]), (logits[:, _FORMS:], labels[:, 1])
            return sum(optax.softmax_cross_entropy_with_integer_labels(*part).mean() for part in parts), moments

        (loss, moments), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), model.update_statistics(stats, moments), opt_state), loss

    return jax.jit(step, donate_argnums=0)


def _augment(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Random flips and quarter turns: the renderer's poses are uniform, so neither changes the task."""
    if rng.uniform() < 0.5:
        images = images[:, :, ::-1]
    return np.ascontiguousarray(np.rot90(images, rng.integers(4), (1, 2)))


def _accuracy(model: Classifier, params, stats, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Shares of images whose form, and whose texture, is recognised with the running statistics."""
    forward = jax.jit(lambda x: model.apply(params, stats, x.astype(jnp.float32), train=False)[0])
    logits = np.concatenate([forward(part) for part in np.split(images, 10)])
    parts = logits[:, :_FORMS].argmax(-1), logits[:, _FORMS:].argmax(-1)
    return tuple(float(np.mean(part == labels[:, i])) for i, part in enumerate(parts))


def main(argv: list[str]) -> None:
    del argv
    path = pathlib.Path(_OUTPUT.value)
    if path.suffix != ".npz" or not path.parent.is_dir():
        raise UserError(f"--output={path} must name a .npz file in a folder that exists")
    images, labels = synthetic.classification_images(_IMAGES.value + _HELD_OUT, seed=_SEED.value)
    train_images, train_labels = images[_HELD_OUT:], labels[_HELD_OUT:]
    model = create_classifier(
        backbone=_BACKBONE.value,
        width=_WIDTH.value,
        num_classes=_FORMS + _TEXTURES,
        output_stride=16,
        multi_grid=(1,) * BACKBONES[_BACKBONE.value].num_multi_grid,
        group_size=None,
    )
    schedule = optax.warmup_cosine_decay_schedule(0.0, _RATE.value, _STEPS.value // 20, _STEPS.value)
    optimizer = optax.adamw(schedule, weight_decay=1e-3)
    params, stats = model.init(jax.random.key(_SEED.value))
    carry = params, stats, optimizer.init(params)
    step = make_step(model, optimizer)
    rng = np.random.default_rng(_SEED.value)
    for i in range(_STEPS.value):
        index = rng.integers(len(train_images), size=_BATCH.value)
        carry, loss = step(carry, _augment(rng, train_images[index]), train_labels[index])
        if (i + 1) % 100 == 0:
            print(f"step {i + 1}/{_STEPS.value}  loss {loss:.3f}", flush=True)
    params, stats, _ = carry
    form, texture = _accuracy(model, params, stats, images[:_HELD_OUT], labels[:_HELD_OUT])
    print(f"{_HELD_OUT} held-out images: {form:.1%} of {_FORMS} forms, {texture:.1%} of {_TEXTURES} textures right")
    backbone = placement.flatten(*({"backbone": tree["backbone"]} for tree in (params, stats)))
    placement.save(path, backbone, np.float16)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    cli.run(main)
