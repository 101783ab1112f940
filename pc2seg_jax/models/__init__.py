"""Networks as pure functions over plain nested dicts; the only folder that knows about Flax."""

from pc2seg_jax.models.functional import CONTRAST_LAYERS, Classifier, Model, create_classifier, create_model
from pc2seg_jax.models.resnet import BACKBONES

__all__ = ["BACKBONES", "CONTRAST_LAYERS", "Classifier", "Model", "create_classifier", "create_model"]
