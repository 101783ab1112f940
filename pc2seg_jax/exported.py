"""The folder that `export` writes, and how its StableHLO program runs: with jax, without the network's code.

model.json         class names, palette, step, preprocessing, sizes and check sums of files, differences measured
model.stablehlo    `jax.export` program for cpu, cuda and tpu; batch, height and width of any size
weights.npz        its weights, where they are not inside
model.onnx         the same function for onnxruntime and other runtimes
saved_model/       the same function for TensorFlow
run_stablehlo.py   an example that needs jax, numpy and Pillow alone
"""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.export
import numpy as np

from pc2seg_jax.errors import UserError

KIND = "pc2seg_jax export"  # of model.json, with the version of its layout
LAYOUT = 1
DESCRIPTION, STABLEHLO, WEIGHTS, ONNX = "model.json", "model.stablehlo", "weights.npz", "model.onnx"
SAVED_MODEL, EXAMPLE = "saved_model", "run_stablehlo.py"


class Exported(NamedTuple):
    """An exported model.

    class_names: in the order of the ids. palette: [256, 3] uint8, RGB. ignore_id: the mask id that counted nowhere.
    step: of the checkpoint. max_side: to which longer side images were shrunk in training, 0: none.
    probabilities(images [B, h, w, 3] uint8, RGB) -> [B, h, w, C] float32, class probabilities
      of images of any size, compiled once for every size; raises ValueError for other images.
    """

    class_names: tuple[str, ...]
    palette: np.ndarray
    ignore_id: int
    step: int
    max_side: int
    probabilities: Callable[[np.ndarray], np.ndarray]


def sha256(path: pathlib.Path) -> str:
    """Of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_description(folder: pathlib.Path) -> dict:
    """What model.json of an export says.

    Raises:
      UserError: when the folder was not written by `export`, or the file is damaged.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UserError(f"{folder} is not a folder written by pc2seg_jax.export: it has no {DESCRIPTION}")
    try:
        description = json.loads(path.read_text())
        kind, layout = description["kind"], description["layout"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a description written by pc2seg_jax.export ({error}): export again") from error
    if kind != KIND or layout != LAYOUT:
        raise UserError(
            f"{path} is of kind {kind!r}, layout {layout}, expected {KIND!r}, layout {LAYOUT}: export again with this "
            "version, or read it with the one that wrote it"
        )
    return description


def load_export(folder: pathlib.Path | str) -> Exported:
    """Reads an exported model, to run its StableHLO program.

    Raises:
      UserError: when the folder was not written by `export` or without StableHLO, a file is missing or damaged, or this
        version of jax does not read it.
    """
    folder = pathlib.Path(folder)
    description = read_description(folder)
    if STABLEHLO not in description["files"]:
        raise UserError(f"{folder} has no {STABLEHLO}: export the run again with --formats=stablehlo")
    for name in (STABLEHLO, WEIGHTS):
        if name in description["files"] and _is_damaged(folder / name, description["files"][name]):
            raise UserError(f"{folder / name} is missing or damaged: export the run again, or copy the whole folder")
    try:
        program = jax.export.deserialize(bytearray((folder / STABLEHLO).read_bytes()))
    except Exception as error:  # whatever the reader of another version stumbles over; the bytes are the right ones
        raise UserError(
            f"{folder / STABLEHLO} cannot be read by jax {jax.__version__} ({type(error).__name__}: {error}): it was "
            f"written by jax {description['versions']['jax']}; install that, or export the run again"
        ) from error
    weights = []
    if WEIGHTS in description["files"]:
        with np.load(folder / WEIGHTS) as arrays:
            weights = [jax.device_put(dict(arrays))]
    call = jax.jit(program.call)

    def probabilities(images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
            raise ValueError(f"images are {images.dtype} {images.shape}, expected uint8 [B, h, w, 3], not empty")
        return np.asarray(call(*weights, images))

    palette = np.asarray(description["palette"], np.uint8)
    names = tuple(description["class_names"])
    max_side = description["largest_side_when_trained"] or 0
    return Exported(names, palette, description["ignore_id"], description["step"], max_side, probabilities)


def _is_damaged(path: pathlib.Path, expected: str) -> bool:
    return not path.is_file() or sha256(path) != expected
