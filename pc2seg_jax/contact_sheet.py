"""A picture of what a run is trained on: the crops of its first batch, as the network sees them."""

import pathlib

import jax
import ml_collections
import numpy as np
from PIL import Image, ImageDraw

from pc2seg_jax import build, training
from pc2seg_jax.data.sources import Dataset
from pc2seg_jax.errors import UserError
from pc2seg_jax.ops.views import make_views
from pc2seg_jax.types import Crops

ROWS, GAP, TEXT = 4, 6, 14
BACKGROUND, INK = (255, 255, 255), (40, 40, 40)


def paint(image: np.ndarray, label: np.ndarray, palette: np.ndarray, ignore_id: int) -> np.ndarray:
    """Class colours half over the image [h, w, 3]; ignored pixels striped in grey."""
    rows, columns = np.indices(label.shape)
    stripes = np.where(((rows + columns) // 4 % 2)[..., None] == 0, 90, 200)
    colors = np.where((label == ignore_id)[..., None], stripes, palette[np.clip(label, 0, 255)])
    return (0.5 * image + 0.5 * colors).round().astype(np.uint8)


def panels(batch, palette: np.ndarray, ignore_id: int) -> list[tuple[str, list[np.ndarray]]]:
    """(caption, images) of every column of the sheet."""
    columns = [
        ("labelled", [np.uint8(x.round()) for x in batch.labeled.image[:ROWS]]),
        (
            "its mask",
            [
                paint(x, y, palette, ignore_id)
                for x, y in zip(batch.labeled.image[:ROWS], batch.labeled.label[:ROWS], strict=True)
            ],
        ),
    ]
    if batch.unlabeled is None:
        return columns
    weak, strong, valid, label = batch.unlabeled
    columns.append(("weak view", [np.uint8(x.round()) for x in weak[:ROWS]]))
    columns.append(("strong view", [np.uint8(x.round()) for x in strong[:ROWS]]))
    dark = [np.where(v[..., None], x, 0.25 * x) for x, v in zip(weak[:ROWS], valid[:ROWS], strict=True)]
    columns.append(("valid (bright)", [np.uint8(x.round()) for x in dark]))
    if label is not None:
        painted = [paint(x, y, palette, ignore_id) for x, y in zip(weak[:ROWS], label[:ROWS], strict=True)]
        columns.append(("mask, for measuring", painted))
    return columns


def draw_sheet(columns: list[tuple[str, list[np.ndarray]]], legend: list[tuple[str, tuple[int, ...]]]) -> Image.Image:
    """Columns of panels side by side under their captions, and the class colours below."""
    height, width = columns[0][1][0].shape[:2]
    rows = max(len(images) for _, images in columns)
    total = GAP + len(columns) * (width + GAP)
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    cell = TEXT + 4 + int(max(ruler.textlength(name) for name, _ in legend)) + 3 * GAP
    per_line = max(1, total // cell)
    below = TEXT + GAP + rows * (height + GAP) + GAP
    sheet = Image.new("RGB", (total, below + -(-len(legend) // per_line) * (TEXT + 4) + GAP), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for number, (caption, images) in enumerate(columns):
        left = GAP + number * (width + GAP)
        pen.text((left, 2), caption, INK)
        for row, image in enumerate(images):
            sheet.paste(Image.fromarray(image), (left, TEXT + GAP + row * (height + GAP)))
    for number, (name, color) in enumerate(legend):
        left, top = GAP + number % per_line * cell, below + number // per_line * (TEXT + 4)
        pen.rectangle((left, top, left + TEXT - 2, top + TEXT - 2), tuple(map(int, color)), INK)
        pen.text((left + TEXT + 4, top), name, INK)
    return sheet


def write_sheet(
    config: ml_collections.ConfigDict, dataset: Dataset, output: pathlib.Path, *, overwrite: bool = False
) -> None:
    """Writes the first images of the batch of step 0 as a PNG.

    Raises:
      UserError: when `output` does not end in .png, its folder is missing, or (without `overwrite`) it exists.
    """
    check_output(output, overwrite)
    crops = next(training.training_batches(config, dataset, 0))
    few = Crops(*(stream and type(stream)(*(x if x is None else x[:ROWS] for x in stream)) for stream in crops))
    views = make_views(few, mean_pixel=build.mean_pixel(config), ignore_id=dataset.ignore_id)
    columns = panels(jax.device_get(views), dataset.palette, dataset.ignore_id)
    legend = [(f"{id_} {name}", dataset.palette[id_]) for id_, name in enumerate(dataset.class_names)]
    draw_sheet(columns, [*legend, ("striped: ignored", (150, 150, 150))]).save(output)


def check_output(output: pathlib.Path, overwrite: bool) -> None:
    """Refuses a file that cannot or must not be written, before anything is read."""
    if output.suffix.lower() != ".png":
        raise UserError(f"--output={output} is a picture: name a file that ends in .png")
    if not output.parent.is_dir():
        raise UserError(f"--output={output}: the folder {output.parent} does not exist")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists already: name another --output, or replace it with --overwrite")
