"""A function of images as a SavedModel of TensorFlow, which runs without jax."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax.extend.mlir.dialects import stablehlo

from pc2seg_jax.types import Tree

STABLEHLO_VERSION = "1.9.0"  # jax 0.11 writes 1.18 by itself, TensorFlow 2.21 reads up to 1.13


def write_saved_model(
    function: Callable,
    weights: Tree,
    images: jax.ShapeDtypeStruct,
    folder: pathlib.Path,
    *,
    platforms: tuple[str, ...],
    description: pathlib.Path,
) -> None:
    """Writes `function(weights, images) -> [B, h, w, C]`; its signature `serving_default`: images -> probabilities.

    The StableHLO program is inside (TensorFlow's operation XlaCallModule), the weights are variables.

    Args:
      weights: {name: array}.
      images: [B, h, w, 3] uint8 of symbolic sizes.
      platforms: that the program is lowered for.
      description: a file, which becomes the asset `metadata`.
    """
    from pc2seg_jax.data.quiet_tensorflow import tf  # before TensorFlow's own modules

    from tensorflow.compiler.tf2xla.python import xla  # isort: skip

    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    program = jax.export.export(jax.jit(function), platforms=platforms)(shapes, images)
    [probabilities] = program.out_avals
    # Not jax2tf, which embeds the StableHLO that jax writes by itself.
    text = stablehlo.deserialize_portable_artifact_str(program.mlir_module_serialized)
    older = stablehlo.serialize_portable_artifact_str(text, STABLEHLO_VERSION)
    module = tf.Module(name="pc2seg_jax")
    module.weights = {name: tf.Variable(array, trainable=False) for name, array in weights.items()}
    module.metadata = tf.saved_model.Asset(str(description))

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")], autograph=False)
    def predict(images: "tf.Tensor") -> dict:
        arguments = [module.weights[name] for name in sorted(weights)] + [images]  # flattened as jax does
        [found] = xla.call_module(
            [arguments[i] for i in program.module_kept_var_idx],
            version=program.calling_convention_version,
            module=older,
            Sout=[(None, None, None, probabilities.shape[-1])],
            Tout=[tf.float32],
            platforms=[name.upper() for name in program.platforms],
        )
        return {"probabilities": found}

    module.predict = predict
    tf.saved_model.save(module, str(folder), signatures={"serving_default": predict})


def open_saved_model(folder: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """`probabilities(images uint8 [B, h, w, 3]) -> [B, h, w, C] float32` of what `write_saved_model` wrote."""
    from pc2seg_jax.data.quiet_tensorflow import tf

    loaded = tf.saved_model.load(str(folder))
    predict = loaded.signatures["serving_default"]

    def probabilities(images: np.ndarray, loaded: object = loaded) -> np.ndarray:  # variables live as long as `loaded`
        return predict(images=tf.constant(images))["probabilities"].numpy()

    return probabilities
