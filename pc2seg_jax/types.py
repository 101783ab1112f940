"""The values that travel between the layers, and the axis letters used in every docstring.

Axis letters: `B` labelled images, `U` unlabelled images, `G` groups, `H W` pixels of a crop, `h w` cells of a feature
map, `C` classes, `F` backbone channels, `D` projected channels, `A` anchors, `M` candidates, `N` negatives, `K` views.

All types are named tuples: JAX treats them as pytrees without this module importing JAX, so the input pipeline, which
never imports JAX, can use them too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

Array = Any  # numpy.ndarray on the host, jax.Array inside a step
Tree = Any  # plain nested dicts with arrays as leaves


class LabeledCrops(NamedTuple):
    """Labelled crops as they travel to the device.

    image: [B, H, W, 3] uint8, RGB. label: [B, H, W] uint8, class id or the ignore id. window: [B, 4] int32, the
    rectangle (top, left, bottom, right) of real pixels; outside is padding, whose stored values mean nothing.
    """

    image: Array
    label: Array
    window: Array


class UnlabeledCrops(NamedTuple):
    """Unlabelled crops as they travel to the device: the weak view, and the recipe of the strong one.

    image, window: as in `LabeledCrops`, U images. cutout: [U, 4] int32, rectangle that the strong view lacks.
    order: [U, 4] int32, the colour operations in their order: numbers of `COLOR_OPERATIONS`. amounts: [U, 4] float32,
    shift of brightness, factors of contrast and saturation, turn of hue. contrast_mean: [U, 3] float32 in 0..1, the
    colour around which contrast changes: the mean over the whole scaled image, of which the device sees a crop.
    label: [U, H, W] uint8 where the run declares ground truth for measuring (the oracle of Tab. 5), else None.
    """

    image: Array
    window: Array
    cutout: Array
    order: Array
    amounts: Array
    contrast_mean: Array
    label: Array | None = None


COLOR_OPERATIONS = ("brightness", "contrast", "saturation", "hue")


class Crops(NamedTuple):
    """One global training batch as it travels; `unlabeled` is None for supervised training."""

    labeled: LabeledCrops
    unlabeled: UnlabeledCrops | None = None


class Labeled(NamedTuple):
    """What the objective sees of labelled crops.

    image: [B, H, W, 3] float32, RGB 0..255. label: [B, H, W] int32, class id or the ignore id.
    """

    image: Array
    label: Array


class Unlabeled(NamedTuple):
    """Two aligned views of unlabelled crops: same scale, crop and flip, pixel for pixel.

    weak, strong: [U, H, W, 3] float32, RGB 0..255. valid: [U, H, W] bool, False on padding and under Cutout.
    label: [U, H, W] int32, the ignore id where not valid, or None.
    """

    weak: Array
    strong: Array
    valid: Array
    label: Array | None = None


class Batch(NamedTuple):
    """What the objective sees of a batch, or of a part of it."""

    labeled: Labeled
    unlabeled: Unlabeled | None = None


class GroupSpan(NamedTuple):
    """Where the images of a group are, seen from one device.

    gather: [G, g', ...] images at hand -> [G, g, ...] of the whole groups. first: place in its group of the first image
    at hand, 0..g-1.
    """

    gather: Callable[[Array], Array] = lambda x: x
    first: Array = 0


class Outputs(NamedTuple):
    """What one forward pass returns.

    logits: [B, h4, w4, C] float32 at stride 4. features: {layer: [B, h, w, F]} of the contrast layers.
    """

    logits: Array
    features: dict[str, Array]


class TrainState(NamedTuple):
    """Everything that a step changes. Randomness is a function of (seed, step) and is not stored.

    teacher: {"params", "batch_stats"}, the exponential moving averages of both, or {} where the run keeps none.
    """

    step: Array
    params: Tree
    batch_stats: Tree
    opt_state: Any
    teacher: Tree
