"""The one import of TensorFlow Datasets, which imports TensorFlow by itself when it first needs it: quiet by then."""

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

import pc2seg_jax.data.quiet_tensorflow  # noqa: F401

downloader.MAX_RETRIES = 5  # its own 10, each after twice the pause, take over three minutes to say that we are offline

__all__ = ["tfds"]
