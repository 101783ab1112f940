"""Networks as pure functions over plain nested dicts; the only folder that knows about Flax."""

from pc2seg_jax.models.backbones import BACKBONES
from pc2seg_jax.models.functional import CONTRAST_LAYERS, Classifier, Model, create_classifier, create_model

__all__ = ["BACKBONES", "CONTRAST_LAYERS", "Classifier", "Model", "create_classifier", "create_model"]
