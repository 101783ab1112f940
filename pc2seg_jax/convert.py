"""Reads published weights once and writes them as one file in our names and layout, without loss.

python -m pc2seg_jax.convert --weights=resnet_v1_50_beta_imagenet --backbone=resnet50_beta --output=resnet50_beta.npz

`--config.init_from=resnet50_beta.npz` then needs neither TensorFlow's reader nor the network on any host.
"""

import pathlib

import jax
import numpy as np
from absl import flags

from pc2seg_jax import cli
from pc2seg_jax.errors import UserError
from pc2seg_jax.models.backbones import BACKBONES
from pc2seg_jax.models.functional import create_model
from pc2seg_jax.weights import named, placement, readers

_WEIGHTS = flags.DEFINE_string(
    "weights", None, f"What to read: {readers.FORMATS}; or one of the names {', '.join(named.NAMES)}."
)
_BACKBONE = flags.DEFINE_enum("backbone", None, sorted(BACKBONES), "The backbone that the weights are for.")
_OUTPUT = flags.DEFINE_string("output", None, "The .npz file to write.")
flags.mark_flags_as_required(["weights", "backbone", "output"])


def main(argv: list[str]) -> None:
    del argv
    output = pathlib.Path(_OUTPUT.value)
    if output.suffix != ".npz" or not output.parent.is_dir() or output.exists():
        raise UserError(f"--output={output} must name a .npz file that does not exist yet, in a folder that does")
    model = create_model(
        backbone=_BACKBONE.value, num_classes=1, multi_grid=(1,) * BACKBONES[_BACKBONE.value].num_multi_grid
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    try:
        weights = placement.load(_WEIGHTS.value, _BACKBONE.value, *shapes)
        _, _, text = placement.place(weights, *shapes)  # checks every name and shape
    except UserError as error:
        raise UserError(f"--weights={_WEIGHTS.value}: {error}") from error
    placement.save(output, weights.values, np.float32)
    count = sum(value.size for value in weights.values.values())
    print(f"wrote {output}: {text}, {len(weights.values)} tensors, {count:,} numbers")


if __name__ == "__main__":
    cli.run(main)
