"""A trained model from Python: `pc2seg_jax.load(folder).predict(images)`."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, overload

import numpy as np
from PIL import Image

from pc2seg_jax import exported, restoring
from pc2seg_jax.data.photos import as_rgb, most_probable, read_size_of, shrink
from pc2seg_jax.errors import UserError
from pc2seg_jax.files import path_of
from pc2seg_jax.prediction import Predictor

ImageLike: TypeAlias = str | pathlib.Path | np.ndarray | Image.Image


class Segmenter(NamedTuple):
    """A trained model.

    class_names: C names. palette: [256, 3] uint8, colours of the ids. step: of the checkpoint. max_side: larger images
    are shrunk to this longer side, as in training, and their probabilities enlarged; 0: none.
    forward: RGB uint8 [h, w, 3] -> probabilities [h, w, C] float32.
    """

    class_names: tuple[str, ...]
    palette: np.ndarray
    step: int
    max_side: int
    forward: Callable[[np.ndarray], np.ndarray]

    def probabilities(self, image: ImageLike) -> np.ndarray:
        """Class probabilities of one image, [h, w, C] float32, in the size in which the network saw it."""
        return self._probabilities(_read(image))

    @overload
    def predict(self, images: ImageLike) -> np.ndarray: ...
    @overload
    def predict(self, images: Sequence[ImageLike]) -> list[np.ndarray]: ...
    def predict(self, images):
        """Class ids, [h, w] uint8, of one image, or a list of them for several.

        Args:
          images: a path, a Pillow image, or an array uint8 [h, w, 3] (RGB) or [h, w] (grey); or several of these, in
            one array [B, h, w, 3] if you like. Any sizes; files are turned as EXIF says.

        Raises:
          UserError: for a file that cannot be decoded, or an array of another kind.
        """
        if isinstance(images, str | pathlib.Path | Image.Image) or getattr(images, "ndim", 4) < 4:
            pixels = _read(images)
            return most_probable(self._probabilities(pixels), pixels.shape[:2])[0]
        return [self.predict(image) for image in images]

    def _probabilities(self, pixels: np.ndarray) -> np.ndarray:
        return self.forward(shrink(pixels, read_size_of(pixels.shape[:2], self.max_side)))


def _read(image: ImageLike) -> np.ndarray:
    if isinstance(image, str | pathlib.Path):
        path = pathlib.Path(image)
        if not path.is_file():
            raise UserError(f"{path} is not a file: name an image, or pass several as a list")
        return as_rgb(path)
    if isinstance(image, Image.Image):
        return as_rgb(image)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise UserError(
            f"an image must be an array of uint8 of shape [h, w, 3] or [h, w], not {pixels.dtype} {pixels.shape}"
        )
    return np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels


def load(path: str | pathlib.Path, *, step: str | int = "latest", network: str = "student") -> Segmenter:
    """A model from the folder of a run, or from one that `pc2seg_jax.export` wrote.

    Args:
      step: of a run, which checkpoint: a step, "best" or "latest". network: of a run, "student", or "teacher" for the
        moving average. An export holds one network, which was chosen when it was made.

    Raises:
      UserError: when the folder is neither, or has no such checkpoint or network, or one is asked of an export.
    """
    folder = path_of(path)
    if (folder / exported.DESCRIPTION).exists():
        if (step, network) != ("latest", "student"):
            raise UserError(f"{folder} is an export, which holds one network: leave step and network out")
        model = exported.load_export(folder)
        return Segmenter(
            model.class_names,
            model.palette,
            model.step,
            model.max_side,
            lambda image: model.probabilities(image[None])[0],
        )
    if not (folder / "config.json").exists():
        raise UserError(
            f"{folder} is neither the folder of a run (config.json) nor of an export ({exported.DESCRIPTION}): name "
            "the --workdir of pc2seg_jax.train or the --output of pc2seg_jax.export"
        )
    if network not in ("student", "teacher"):
        raise UserError(f"network={network!r} must be 'student' or 'teacher'")
    run = restoring.restore(folder, str(step)).with_network(network)
    palette = np.asarray(run.info.palette, np.uint8)
    return Segmenter(run.info.class_names, palette, run.step, run.config.data.max_side, Predictor(run))
