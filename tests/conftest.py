"""Eight virtual CPU devices for every test; must run before anything asks JAX for its devices."""

import os

import jax

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
jax.config.update("jax_num_cpu_devices", 8)
