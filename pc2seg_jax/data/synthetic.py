"""The embedded dataset: procedural scenes whose classes differ in form and texture, never in colour.

Every image is a pure function of (seed, split, index): nothing is downloaded and every machine sees the same pixels.
A scene is a smoothly lit, noisy background with clutter, on which a few objects occlude each other. An object is a
form (its outline) filled with a texture in two random colours. Class ids name (form, texture) pairs; plain objects of
the same forms, and scraps of the same textures, belong to the background, so neither cue suffices alone.
"""

import numpy as np

from pc2seg_jax.data.patterns import FORMS, TEXTURES

CLASSES = (
    ("disk", "stripes"),
    ("disk", "dots"),
    ("triangle", "stripes"),
    ("triangle", "dots"),
    ("star", "stripes"),
    ("star", "dots"),
)
CLASS_NAMES = ("background", *(f"{texture}_{form}" for form, texture in CLASSES))

# The pretraining task shares no form and no texture with the classes of the segmentation task.
PRETRAIN_FORMS = tuple(name for name in FORMS if name not in ("disk", "triangle", "star"))
PRETRAIN_TEXTURES = tuple(name for name in TEXTURES if name not in ("plain", "stripes", "dots"))


def _colors(rng: np.random.Generator) -> np.ndarray:
    """Two random RGB colours [2, 3] in 0..1 whose brightness differs by at least 0.2, so that texture stays visible."""
    while True:
        pair = rng.uniform(0, 1, (2, 3))
        if abs(pair[0].mean() - pair[1].mean()) >= 0.2:
            return pair


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Bilinearly interpolated random field, [size, size], in -1..1."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1))
    position = np.linspace(0, cells - 1e-6, size)
    low = position.astype(int)
    fraction = position - low
    rows = grid[low] * (1 - fraction[:, None]) + grid[low + 1] * fraction[:, None]
    return rows[:, low] * (1 - fraction) + rows[:, low + 1] * fraction


def _paint(
    rng: np.random.Generator,
    image: np.ndarray,
    form: str,
    texture: str,
    radius: tuple[float, float],
    periods: tuple[float, float],
    margin: float = 0.1,
) -> tuple:
    """Paints one object in place at a random pose.

    Args:
      image: [n, n, 3] float 0..1. radius, periods: ranges of the object's radius and of its texture's period in pixels.
      margin: the centre keeps this share of n away from the border.

    Returns:
      (window, inside): the slices of the object's bounding box and its boolean outline in it.
    """
    size = image.shape[0]
    r = rng.uniform(*radius)
    cy, cx = rng.uniform(margin * size, (1 - margin) * size, 2)
    window = tuple(slice(max(0, int(c - 1.3 * r)), min(size, int(c + 1.3 * r) + 1)) for c in (cy, cx))
    y, x = np.mgrid[window]
    angle, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.0)
    u = (np.cos(angle) * (x - cx) + np.sin(angle) * (y - cy)) / r
    v = (-np.sin(angle) * (x - cx) + np.cos(angle) * (y - cy)) / (r * squeeze)
    inside = FORMS[form](u, v)
    turn, period = rng.uniform(0, 2 * np.pi), rng.uniform(*periods)
    phase = rng.uniform(0, 1, 2)
    s = (np.cos(turn) * x + np.sin(turn) * y) / period + phase[0]
    t = (-np.sin(turn) * x + np.cos(turn) * y) / period + phase[1]
    mix = TEXTURES[texture](s, t)[..., None]
    colors = _colors(rng)
    image[window][inside] = ((1 - mix) * colors[0] + mix * colors[1])[inside]
    return window, inside


def _background(
    rng: np.random.Generator, size: int, textures: tuple[str, ...], periods: tuple[float, float]
) -> np.ndarray:
    """Two colours mixed by smooth noise, with bars and small textured scraps as clutter, [size, size, 3] in 0..1."""
    colors = rng.uniform(0, 1, (2, 3))
    mix = 0.5 + 0.5 * _smooth_noise(rng, size, int(rng.integers(2, 7)))[..., None]
    image = (1 - mix) * colors[0] + mix * colors[1]
    for _ in range(rng.integers(2, 6)):
        _paint(rng, image, "bar", textures[rng.integers(len(textures))], (0.05 * size, 0.13 * size), periods)
    return image


def _light(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Lighting gradient, gamma and sensor noise; returns uint8."""
    size = image.shape[0]
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    direction, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.35)
    image = image * (1 + strength * (np.cos(direction) * x + np.sin(direction) * y))[..., None]
    image = np.clip(image, 0, 1) ** rng.uniform(0.7, 1.4)
    image = image + rng.normal(0, rng.uniform(0.01, 0.06), image.shape)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def scene(seed: int, split: int, index: int, size: int = 97) -> tuple[np.ndarray, np.ndarray]:
    """One scene of the segmentation task.

    Args:
      seed: dataset seed. split: 0 for training, 1 for validation. index: position in the split. size: side in pixels.

    Returns:
      (image uint8 [size, size, 3], mask uint8 [size, size] with ids into `CLASS_NAMES`).
    """
    rng = np.random.default_rng([seed, split, index])
    image = _background(rng, size, ("plain", "stripes", "dots"), (6, 10))
    mask = np.zeros((size, size), np.uint8)
    for _ in range(rng.integers(1, 4)):
        distractor = rng.uniform() < 0.15
        class_id = 0 if distractor else int(rng.integers(1, len(CLASSES) + 1))
        form, texture = CLASSES[class_id - 1] if class_id else (CLASSES[rng.integers(len(CLASSES))][0], "plain")
        window, inside = _paint(rng, image, form, texture, (0.22 * size, 0.4 * size), (6, 10))
        mask[window][inside] = class_id
    return _light(rng, image), mask


def classification_images(count: int, *, size: int = 65, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The pretraining task: one large object of a foreign form and texture on a cluttered background.

    Returns:
      (images uint8 [count, size, size, 3], labels int32 [count, 2]: index of the form, index of the texture).
    """
    images = np.empty((count, size, size, 3), np.uint8)
    labels = np.empty((count, 2), np.int32)
    for i in range(count):
        rng = np.random.default_rng([seed, 2, i])
        image = _background(rng, size, ("plain", *PRETRAIN_TEXTURES), (5, 10))
        form, texture = rng.integers(len(PRETRAIN_FORMS)), rng.integers(len(PRETRAIN_TEXTURES))
        _paint(rng, image, PRETRAIN_FORMS[form], PRETRAIN_TEXTURES[texture], (0.25 * size, 0.5 * size), (5, 10), 0.3)
        images[i], labels[i] = _light(rng, image), (form, texture)
    return images, labels
