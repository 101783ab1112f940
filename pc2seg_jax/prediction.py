"""Masks for a folder of images."""

import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from PIL import Image

from pc2seg_jax import build
from pc2seg_jax.errors import UserError
from pc2seg_jax.restoring import Run
from pc2seg_jax.step import predict_probabilities

_SUFFIXES = (".jpg", ".jpeg", ".png")


def find_images(folder: pathlib.Path) -> list[pathlib.Path]:
    """The images directly inside a folder, sorted by name.

    Raises:
      UserError: when the folder is missing, holds no image, or two images would write the same mask.
    """
    if not folder.is_dir():
        raise UserError(f"--images={folder} is not a folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise UserError(f"--images={folder} holds no image: expected files that end in {', '.join(_SUFFIXES)}")
    stems: dict[str, pathlib.Path] = {}
    for path in paths:
        if path.stem in stems:
            raise UserError(f"{stems[path.stem]} and {path} would write the same mask: rename one of them")
        stems[path.stem] = path
    return paths


def _padded_size(size: tuple[int, int], at_least: tuple[int, int]) -> tuple[int, int]:
    """The evaluation size where the image fits into it, else the next multiples of 64, plus 1: few compilations."""
    if size[0] <= at_least[0] and size[1] <= at_least[1]:
        return at_least
    return tuple(-(-(side - 1) // 64) * 64 + 1 for side in size)


def read_image(path: pathlib.Path, max_side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """(RGB uint8 [h, w, 3] with its longer side at most `max_side` unless that is 0, original (height, width)).

    Raises:
      UserError: when the file is not an image that Pillow can decode.
    """
    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be decoded ({error}): replace the file or remove it from the folder") from error
    original = image.height, image.width
    if max_side and max(original) > max_side:
        factor = max_side / max(original)
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image), original


def make_predictor(run: Run) -> Callable[[np.ndarray], np.ndarray]:
    """`predict(image uint8 [h, w, 3]) -> probabilities [h, w, C] float32`, compiled once per padded size."""

    @jax.jit
    def forward(params, batch_stats, image):
        return predict_probabilities(run.model, params, batch_stats, image)[0]

    def predict(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        rows, columns = _padded_size((height, width), run.info.eval_size)
        canvas = np.broadcast_to(np.float32(build.mean_pixel(run.config)), (1, rows, columns, 3)).copy()
        canvas[0, :height, :width] = image
        return np.asarray(forward(run.params, run.batch_stats, canvas))[:height, :width]

    return predict


def overlay(image: np.ndarray, mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The image with its mask in half-transparent class colours, uint8 [h, w, 3]; class 0 stays clear."""
    colored = np.where(mask[..., None] == 0, image, palette[mask] // 2 + image // 2)
    return colored.astype(np.uint8)


def predict_folder(
    run: Run, images: pathlib.Path, output: pathlib.Path, *, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """Writes `masks/<stem>.png` (palette PNG of class ids) and `overlays/<stem>.jpg` for every image.

    Images larger than the run's `data.max_side` are predicted at that size; masks always have the image's own size.

    Yields:
      The path of every mask when it is written.

    Raises:
      UserError: on an unusable input folder, or (without `overwrite`) when a mask exists already.
    """
    paths = find_images(images)
    masks, overlays = output / "masks", output / "overlays"
    for folder in (output, masks, overlays):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is not a folder: name another --output")
    for path in paths:
        if not overwrite and (masks / f"{path.stem}.png").exists():
            raise UserError(
                f"{masks / path.stem}.png exists already: name another --output, or replace it with --overwrite"
            )
    masks.mkdir(parents=True, exist_ok=True)
    overlays.mkdir(exist_ok=True)
    palette = np.asarray(run.info.palette, np.uint8)
    predict = make_predictor(run)
    for path in paths:
        image, (height, width) = read_image(path, run.config.data.max_side)
        ids = Image.fromarray(predict(image).argmax(-1).astype(np.uint8))
        ids = ids.resize((width, height), Image.Resampling.NEAREST)
        full, _ = read_image(path, 0)
        Image.fromarray(overlay(full, np.asarray(ids), palette)).save(overlays / f"{path.stem}.jpg", quality=92)
        ids.putpalette(palette.tobytes())
        ids.save(masks / f"{path.stem}.png")
        yield masks / f"{path.stem}.png"
