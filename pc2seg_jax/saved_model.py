"""A function of images as a SavedModel of TensorFlow, which runs without jax."""

import pathlib
from collections.abc import Callable

import numpy as np

from pc2seg_jax.types import Tree


def write_saved_model(
    function: Callable, weights: Tree, folder: pathlib.Path, *, platforms: tuple[str, ...], description: pathlib.Path
) -> None:
    """Writes `function(weights, images [B, h, w, 3] uint8)`; its signature `serving_default`: images -> probabilities.

    The StableHLO program is inside (TensorFlow's operation XlaCallModule), the weights are variables.

    Args:
      weights: {name: array}.
      platforms: that the program is lowered for.
      description: a file, which becomes the asset `metadata`.
    """
    from pc2seg_jax.data.quiet_tensorflow import tf  # before jax2tf, which imports TensorFlow as well

    from jax.experimental import jax2tf  # isort: skip

    convert = jax2tf.convert(
        function,
        polymorphic_shapes=[None, "(b, h, w, 3)"],
        native_serialization_platforms=platforms,
        with_gradient=False,
    )
    module = tf.Module(name="pc2seg_jax")
    module.weights = {name: tf.Variable(array, trainable=False) for name, array in weights.items()}
    module.metadata = tf.saved_model.Asset(str(description))
    images = tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")

    @tf.function(input_signature=[images], autograph=False)
    def predict(images: "tf.Tensor") -> dict:
        return {"probabilities": convert(module.weights, images)}

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
