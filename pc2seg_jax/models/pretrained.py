"""Backbone weights as small files: what ImageNet checkpoints are for the paper's networks."""

import pathlib

import jax.numpy as jnp
import numpy as np

from pc2seg_jax.errors import UserError
from pc2seg_jax.types import Tree

_SHIPPED = {"textures": pathlib.Path(__file__).parent.parent / "weights" / "resnet26_beta_w16_textures.npz"}


def _flatten(tree: Tree, prefix: str) -> dict[str, np.ndarray]:
    flat = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}/{name}") if isinstance(value, dict) else {f"{prefix}/{name}": value}
    return flat


def save_backbone(path: pathlib.Path, params: Tree, batch_stats: Tree) -> None:
    """Writes `params["backbone"]` and `batch_stats["backbone"]` as float16, one array per path of the tree."""
    flat = _flatten(params["backbone"], "params/backbone") | _flatten(batch_stats["backbone"], "batch_stats/backbone")
    np.savez_compressed(path, **{name: np.asarray(value, np.float16) for name, value in flat.items()})


def load_backbone(init_from: str, params: Tree, batch_stats: Tree) -> tuple[Tree, Tree]:
    """Replaces the backbone of a freshly initialised model.

    Args:
      init_from: a file written by `save_backbone`, or "textures" for the shipped one (resnet26_beta, width 16).
      params, batch_stats: trees of the model; everything but `backbone` is kept.

    Returns:
      (params, batch_stats) as new trees of float32 arrays.

    Raises:
      UserError: when the file is missing or unreadable, or its names or shapes are not those of this backbone.
    """
    path = _SHIPPED.get(init_from, pathlib.Path(init_from))
    known = "expected a file written by pc2seg_jax.pretrain, or the name " + " or ".join(repr(n) for n in _SHIPPED)
    try:
        with np.load(path) as archive:
            stored = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError, EOFError) as error:
        raise UserError(f"config.init_from is {init_from!r}, which cannot be read ({error}): {known}") from error
    expected = _flatten(params["backbone"], "params/backbone") | _flatten(
        batch_stats["backbone"], "batch_stats/backbone"
    )
    for name in sorted(expected.keys() | stored.keys()):
        have = stored[name].shape if name in stored else "nothing"
        want = expected[name].shape if name in expected else "nothing"
        if have != want:
            raise UserError(
                f"config.init_from is {init_from!r}, which does not fit this backbone: for {name} it holds {have}, "
                f"expected {want}; check config.model.backbone and config.model.width"
            )

    def fill(tree: Tree, prefix: str) -> Tree:
        return {
            name: fill(value, f"{prefix}/{name}")
            if isinstance(value, dict)
            else jnp.asarray(stored[f"{prefix}/{name}"], jnp.float32)
            for name, value in tree.items()
        }

    return (
        params | {"backbone": fill(params["backbone"], "params/backbone")},
        batch_stats | {"backbone": fill(batch_stats["backbone"], "batch_stats/backbone")},
    )
