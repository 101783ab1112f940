"""What prediction leaves on the disk: masks, overlays, confidence, probabilities."""

import pathlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import Image

from pc2seg_jax.data.photos import as_rgb, find_photos, most_probable
from pc2seg_jax.errors import UserError
from pc2seg_jax.inference import ONE_VIEW, InferenceViews
from pc2seg_jax.prediction import Prediction, Predictor, predict_all, read_headers
from pc2seg_jax.restoring import Run

_WAITING = 8  # images that may wait to be written


def overlay(image: np.ndarray, mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The image with its mask in half-transparent class colours, uint8 [h, w, 3]; class 0 stays clear."""
    colored = np.where(mask[..., None] == 0, image, palette[mask] // 2 + image // 2)
    return colored.astype(np.uint8)


def check_output(paths: list[pathlib.Path], output: pathlib.Path, kinds: dict[str, str], overwrite: bool) -> None:
    """Refuses a folder that cannot be written to, or that holds what would be written.

    Raises:
      UserError: naming the file.
    """
    for folder in (output, *(output / kind for kind in kinds)):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is not a folder: name another --output")
    for path in paths:
        for kind, ending in kinds.items():
            file = output / kind / f"{path.stem}{ending}"
            if file.exists() and not overwrite:
                raise UserError(f"{file} exists already: name another --output, or replace it with --overwrite")


def predict_photos(
    run: Run,
    patterns: list[str],
    output: pathlib.Path,
    *,
    views: InferenceViews = ONE_VIEW,
    batch_size: int = 8,
    with_probabilities: bool = False,
    overwrite: bool = False,
) -> tuple[int, dict[pathlib.Path, str], Iterator[pathlib.Path]]:
    """Writes the masks of images, always in the images' own sizes, and turned as EXIF says.

    masks/<stem>.png: palette PNG of class ids. overlays/<stem>.jpg: the classes over the image.
    confidence/<stem>.png: grey, the probability of the class, 0 to 1 as 0 to 255. probabilities/<stem>.npz: if wanted,
    `probabilities` float16 [h, w, C] and `class_names`.

    Images larger than the run's `data.max_side` are predicted at that size and their probabilities enlarged.

    Args:
      patterns: files, folders and patterns, see `find_photos`. batch_size: images of one size at a time.

    Returns:
      (count of images, problems, written): `written` yields the path of every mask; `problems` tells, when it has
      ended, which images were left out and why.

    Raises:
      UserError: on unusable patterns, or (without `overwrite`) when a file exists already.
    """
    paths = find_photos(patterns)
    kinds = {"masks": ".png", "overlays": ".jpg", "confidence": ".png"}
    kinds |= {"probabilities": ".npz"} if with_probabilities else {}
    check_output(paths, output, kinds, overwrite)
    for kind in kinds:
        (output / kind).mkdir(parents=True, exist_ok=True)
    headers, problems = read_headers(paths, run.config.data.max_side)
    predictions = predict_all(headers, Predictor(run, views), batch_size=batch_size, problems=problems)
    return len(paths), problems, _write_all(predictions, run, output, with_probabilities)


def _write_all(
    predictions: Iterator[Prediction], run: Run, output: pathlib.Path, with_probabilities: bool
) -> Iterator[pathlib.Path]:
    """Writes in other threads, compressing being slow, at most `_WAITING` images behind."""
    waiting: list[Future] = []
    with ThreadPoolExecutor() as pool:
        for prediction in predictions:
            ids, confidence, probabilities = _decide(prediction, with_probabilities)
            waiting.append(pool.submit(_write, prediction, ids, confidence, probabilities, run, output))
            if len(waiting) > _WAITING:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _decide(prediction: Prediction, keep: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Classes [h, w] and their probabilities in the image's own size, and, to `keep`, all as the network gave them."""
    header = prediction.header
    if keep or header.read_size != header.size:
        probabilities = np.concatenate(list(prediction.strips))
        return *most_probable(probabilities, header.size), probabilities if keep else None
    parts = [most_probable(strip, strip.shape[:2]) for strip in prediction.strips]
    ids, confidence = (np.concatenate(x) for x in zip(*parts, strict=True))
    return ids, confidence, None


def _write(
    prediction: Prediction,
    ids: np.ndarray,
    confidence: np.ndarray,
    probabilities: np.ndarray | None,
    run: Run,
    output: pathlib.Path,
) -> pathlib.Path:
    header = prediction.header
    palette = np.asarray(run.info.palette, np.uint8)
    stem = header.path.stem
    image = prediction.image if header.read_size == header.size else as_rgb(header.path)
    Image.fromarray(overlay(image, ids, palette)).save(output / "overlays" / f"{stem}.jpg", quality=92)
    grey = np.round(255 * np.clip(confidence, 0, 1)).astype(np.uint8)
    Image.fromarray(grey).save(output / "confidence" / f"{stem}.png")
    if probabilities is not None:
        np.savez_compressed(
            output / "probabilities" / f"{stem}.npz",
            probabilities=probabilities.astype(np.float16),
            class_names=np.array(run.info.class_names),
        )
    mask = Image.fromarray(ids)
    mask.putpalette(palette.tobytes())
    path = output / "masks" / f"{stem}.png"
    mask.save(path)  # last: an image with a mask is complete
    return path
