"""What the unlabelled losses of a trained run see: views, predictions, and the negatives of an anchor (Fig. 3)."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from pc2seg_jax import build, training
from pc2seg_jax.contact_sheet import draw_sheet, paint
from pc2seg_jax.data.sources import Dataset
from pc2seg_jax.errors import UserError
from pc2seg_jax.ops.sampling import STRATEGIES, Candidates, draw_mask, exponential_clocks, sampling_weights
from pc2seg_jax.ops.views import make_views
from pc2seg_jax.resize import resize_bilinear, subsample_nearest
from pc2seg_jax.restoring import Run
from pc2seg_jax.types import Crops, Outputs, Tree, Unlabeled

ROWS, SMALLEST_PANEL, DARKEST = 4, 190, 0.12
ANCHOR, DRAWN = (255, 150, 0), (255, 0, 80)


class Draw(NamedTuple):
    """What one strategy does for the anchor. weights: [M] 0..1, drawn: [M] bool, both views, weak first."""

    weights: np.ndarray
    drawn: np.ndarray


class Scene(NamedTuple):
    """A group of g unlabelled images as the run sees it.

    weak, strong: [g, H, W, 3] RGB 0..255. predicted: [g, H, W] class of the weak view. classes: [g, h, w], the same at
    feature resolution. anchor: (row, column) of the anchor's cell in the first image. draws: by strategy.
    """

    weak: np.ndarray
    strong: np.ndarray
    predicted: np.ndarray
    classes: np.ndarray
    anchor: tuple[int, int]
    draws: dict[str, Draw]


def _group_of_batch(run: Run, dataset: Dataset, batch: int) -> Crops:
    """The crops of one training batch, of whose unlabelled images only the first group is left."""
    crops = next(training.training_batches(run.config, dataset, batch))
    group = build.group_size(run.config)
    return jax.tree.map(lambda x: x[:group], crops)


def _choose_anchor(valid: np.ndarray, pixel: tuple[int, int] | None, size: tuple[int, int]) -> tuple[int, int]:
    """The cell of a pixel of the crop, or the valid cell next to the centre; valid: [h, w]."""
    cells = valid.shape
    if pixel is None:
        rows, columns = np.nonzero(valid)
        if not len(rows):
            raise UserError("the first image of this batch has no valid pixel: choose another --batch")
        nearest = np.argmin((rows - cells[0] / 2) ** 2 + (columns - cells[1] / 2) ** 2)
        return int(rows[nearest]), int(columns[nearest])
    if not all(0 <= x < side for x, side in zip(pixel, size, strict=True)):
        raise UserError(f"--anchor={pixel[0]},{pixel[1]} is outside of the crop of {size[0]} x {size[1]} pixels")
    row, column = (round(x * (n - 1) / (side - 1)) for x, n, side in zip(pixel, cells, size, strict=True))
    if not valid[row, column]:
        raise UserError(
            f"--anchor={pixel[0]},{pixel[1]} is on padding or under Cutout, which takes no part in the loss: choose "
            "another pixel, or leave --anchor out"
        )
    return row, column


def look(run: Run, *, batch: int = 0, anchor: tuple[int, int] | None = None, dataset: Dataset | None = None) -> Scene:
    """Computes a scene of the run's own training data, with the running statistics.

    The network is the one whose predictions the losses use: the teacher, where the run keeps one.

    Args:
      batch: training step whose batch is shown, from 0. anchor: (row, column) in pixels of the first image's crop.
      dataset: the run's, where it has been opened already.

    Raises:
      UserError: when the run has no unlabelled stream, or the anchor is not a valid pixel.
    """
    if run.config.objective == "supervised":
        raise UserError("this run was trained with config.objective=supervised: it has no unlabelled images to show")
    run = run.with_network("teacher") if run.teacher else run
    crops = _group_of_batch(run, dataset or build.build_dataset(run.config), batch)
    ignore_id = run.info.ignore_id
    settings = {"mean_pixel": build.mean_pixel(run.config), "mask_cutout": run.config.loss.mask_cutout}

    @jax.jit
    def forward(params: Tree, batch_stats: Tree, crops: Crops) -> tuple[Unlabeled, Outputs]:
        seen = make_views(crops, ignore_id=ignore_id, **settings).unlabeled
        return seen, run.model.apply(params, batch_stats, seen.weak, train=False)[0]

    unlabeled, outputs = forward(run.params, run.batch_stats, crops)
    size = unlabeled.weak.shape[1:3]
    cells = outputs.features[run.config.model.contrast_layers[0]].shape[1:3]
    probs = resize_bilinear(jax.nn.softmax(outputs.logits), cells)
    valid = np.asarray(subsample_nearest(unlabeled.valid, cells)) > 0
    label = None if unlabeled.label is None else subsample_nearest(unlabeled.label, cells)
    place = _choose_anchor(valid[0], anchor, size)

    count = valid.size
    pixel = np.arange(count, dtype=np.int32)

    def both(x: np.ndarray) -> jax.Array:
        return jnp.concatenate([jnp.asarray(x)] * 2)

    candidates = Candidates(
        image=both(pixel // (count // len(valid))),
        pixel=both(pixel),
        probs=both(probs.reshape(count, -1)),
        valid=both(valid.reshape(-1)),
        label=None if label is None else both(jnp.where(label == ignore_id, -1, label).reshape(-1)),
    )
    first = place[0] * cells[1] + place[1]
    anchor_pixel = jax.tree.map(lambda x: x[first : first + 1], candidates)
    clocks = exponential_clocks(jax.random.split(jax.random.key(run.config.seed), 1), 2 * count)
    draws = {}
    for strategy in STRATEGIES:
        if strategy != "oracle" or label is not None:
            weights = sampling_weights(strategy, anchor_pixel, candidates)
            drawn = draw_mask(clocks, weights, run.config.loss.num_negatives)
            draws[strategy] = Draw(np.asarray(weights[0]), np.asarray(drawn[0]))
    predicted = resize_bilinear(outputs.logits, size).argmax(-1)
    arrays = (unlabeled.weak, unlabeled.strong, predicted, probs.argmax(-1))
    return Scene(*(np.asarray(x) for x in arrays), place, draws)


def describe(scene: Scene, class_names: tuple[str, ...]) -> str:
    """The anchor; per strategy candidates, their effective number (sum w)^2 / sum w^2, and negatives of its class."""
    own = scene.classes[0][scene.anchor]
    classes = np.tile(scene.classes.reshape(-1), 2)
    lines = [
        f"anchor: cell {scene.anchor[0]}, {scene.anchor[1]} of the first image, predicted {class_names[own]}",
        f"{'strategy':<30}{'candidates':>11}{'effective':>11}{'negatives':>11}{'of its predicted class':>24}",
    ]
    for strategy, (weights, drawn) in scene.draws.items():
        effective = weights.sum() ** 2 / max((weights**2).sum(), 1e-12)
        same = f"{(classes[drawn] == own).mean():.1%}" if drawn.any() else "-"
        lines.append(f"{strategy:<30}{np.sum(weights > 0):>11}{effective:>11.0f}{drawn.sum():>11}{same:>24}")
    return "\n".join(lines)


def shade(image: np.ndarray, weights: np.ndarray, drawn: np.ndarray, factor: int) -> np.ndarray:
    """The image, enlarged, dark where a cell is not likely to be drawn, with a dot where it was.

    Args:
      image: [H, W, 3]. weights: [h, w] 0..1. drawn: [h, w] bool.
    """
    large = np.repeat(np.repeat(image, factor, 0), factor, 1)
    rows, columns = (
        np.round(np.arange(side) * (n - 1) / (side - 1)).astype(int)
        for n, side in zip(weights.shape, large.shape[:2], strict=True)
    )
    large = large * (DARKEST + (1 - DARKEST) * weights[np.ix_(rows, columns)])[..., None]
    for cell in np.argwhere(drawn):
        _dot(large, cell, weights.shape, DRAWN, 2)
    return large


def _dot(panel: np.ndarray, cell: tuple[int, int], cells: tuple[int, int], color: tuple[int, ...], radius: int) -> None:
    row, column = (round(x * (side - 1) / (n - 1)) for x, n, side in zip(cell, cells, panel.shape[:2], strict=True))
    panel[max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1] = color


def columns(scene: Scene, run: Run) -> dict[str, list[np.ndarray]]:
    """Caption -> panels [H, W, 3] uint8 of at most four images of the group, the anchor's first, enlarged where small.

    The captions are "weak view", "strong view", "predicted" and the names of the strategies.
    """
    palette = np.asarray(run.info.palette, np.uint8)
    factor = -(-SMALLEST_PANEL // scene.weak.shape[1])
    count, cells = min(ROWS, len(scene.weak)), scene.classes.shape[1:]

    def enlarge(image: np.ndarray, mark: bool) -> np.ndarray:
        large = np.repeat(np.repeat(image, factor, 0), factor, 1)
        if mark:
            _dot(large, scene.anchor, cells, ANCHOR, 4)
        return np.uint8(np.clip(large.round(), 0, 255))

    painted = [paint(x, y, palette, run.info.ignore_id) for x, y in zip(scene.weak, scene.predicted, strict=True)]
    found = {
        caption: [enlarge(images[i], i == 0) for i in range(count)]
        for caption, images in (("weak view", scene.weak), ("strong view", scene.strong), ("predicted", painted))
    }
    for strategy, draw in scene.draws.items():
        weights, drawn = (x.reshape(2, *scene.classes.shape).max(0) for x in draw)
        panels = [shade(scene.weak[i], weights[i], drawn[i], factor) for i in range(count)]
        _dot(panels[0], scene.anchor, cells, ANCHOR, 4)
        found[strategy] = [np.uint8(np.clip(panel.round(), 0, 255)) for panel in panels]
    return found


def sheet(scene: Scene, run: Run) -> Image.Image:
    """The panels of `columns` side by side."""
    palette = np.asarray(run.info.palette, np.uint8)
    legend = [(f"{i} {name}", palette[i]) for i, name in enumerate(run.info.class_names)]
    return draw_sheet(list(columns(scene, run).items()), [*legend, ("the anchor", ANCHOR), ("drawn negative", DRAWN)])


def write(run: Run, output: pathlib.Path, *, batch: int, anchor: tuple[int, int] | None) -> str:
    """Writes the sheet, and returns `describe`."""
    scene = look(run, batch=batch, anchor=anchor)
    sheet(scene, run).save(output)
    return describe(scene, run.info.class_names)
