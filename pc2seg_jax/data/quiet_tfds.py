"""The one import of TensorFlow Datasets, which imports TensorFlow by itself when it first needs it: quiet by then."""

import tensorflow_datasets as tfds

import pc2seg_jax.data.quiet_tensorflow  # noqa: F401

__all__ = ["tfds"]
