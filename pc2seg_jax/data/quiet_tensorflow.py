"""The one import of TensorFlow: without its start-up messages, and without the accelerators, which belong to JAX."""

import os

# TensorFlow's C++ code writes a dozen lines to file descriptor 2 on import, whatever TF_CPP_MIN_LOG_LEVEL says; a
# failing import still raises.
_stderr = os.dup(2)
_null = os.open(os.devnull, os.O_WRONLY)
try:
    os.dup2(_null, 2)
    import tensorflow as tf
finally:
    os.dup2(_stderr, 2)
    os.close(_null)
    os.close(_stderr)

tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")

__all__ = ["tf"]
