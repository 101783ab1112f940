"""A function of images as an ONNX file, which runs without jax."""

import json
import pathlib
from collections.abc import Callable

import jax
import numpy as np


def write_onnx(function: Callable, images: jax.ShapeDtypeStruct, path: pathlib.Path, *, description: dict) -> None:
    """Writes `function(images) -> [B, h, w, C]`, checked by onnx's own checker.

    Args:
      images: [B, h, w, 3] uint8 of symbolic sizes.
      description: becomes the metadata.
    """
    import onnx

    from pc2seg_jax.onnx_primitives import to_onnx

    model = to_onnx(
        jax.jit(function).trace(images).jaxpr,
        input_name="images",
        axes=("batch", "height", "width", "channels"),
        output_name="probabilities",
        metadata={key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()},
    )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def open_onnx(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """`probabilities(images uint8 [B, h, w, 3]) -> [B, h, w, C] float32` of what `write_onnx` wrote, by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]
