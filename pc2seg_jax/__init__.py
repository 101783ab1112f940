"""Pixel contrastive-consistent semi-supervised semantic segmentation in JAX.

`pc2seg_jax.load(folder)` gives a trained model: see `segmenter`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pc2seg_jax.segmenter import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`load` when it is asked for: importing the package alone imports neither JAX nor TensorFlow."""
    if name == "load":
        from pc2seg_jax.segmenter import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
