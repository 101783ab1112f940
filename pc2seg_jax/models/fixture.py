"""Prints statistics of a network with deterministic weights and input, to compare with another implementation.

python -m pc2seg_jax.models.fixture --backbone=resnet50_beta [--output_stride=16 --multi_grid=1,2,4 --size=65 --train]

`models/deterministic.py` says how. Of each tensor: mean, standard deviation, largest absolute value, the first three
numbers and the last three.
"""

from absl import flags

from pc2seg_jax import cli
from pc2seg_jax.errors import UserError
from pc2seg_jax.models.deterministic import describe, run
from pc2seg_jax.models.tensor_names import TENSORFLOW_SCOPES

_BACKBONE = flags.DEFINE_enum("backbone", "resnet50_beta", sorted(TENSORFLOW_SCOPES), "The backbone.")
_STRIDE = flags.DEFINE_integer("output_stride", 16, "8, 16 or 32.")
_MULTI_GRID = flags.DEFINE_list("multi_grid", "1,1,1", "Dilation factors of the last block.")
_SIZE = flags.DEFINE_integer("size", 65, "Side of the input, output_stride * k + 1.", lower_bound=1)
_CLASSES = flags.DEFINE_integer("num_classes", 21, "Classes of the logits.", lower_bound=1)
_TRAIN = flags.DEFINE_boolean("train", False, "Normalise by the batch's statistics (no dropout).")


def main(argv: list[str]) -> None:
    del argv
    try:
        multi_grid = tuple(int(factor) for factor in _MULTI_GRID.value)
    except ValueError as error:
        raise UserError(
            f"--multi_grid={','.join(_MULTI_GRID.value)} is not a list of integers such as 1,2,4"
        ) from error
    tensors = run(
        _BACKBONE.value,
        output_stride=_STRIDE.value,
        multi_grid=multi_grid,
        size=_SIZE.value,
        num_classes=_CLASSES.value,
        train=_TRAIN.value,
    )
    print(f"{'tensor':<10} {'shape':<17} mean, std, abs max; [0, 0, 0, :3]; [1, -1, -1, -3:]")
    for name, tensor in tensors.items():
        numbers = [f"{value:.6g}" for value in describe(tensor)]
        shape = " x ".join(map(str, tensor.shape))
        print(
            f"{name:<10} {shape:<17} {'; '.join(' '.join(part) for part in (numbers[:3], numbers[3:6], numbers[6:]))}"
        )


if __name__ == "__main__":
    cli.run(main)
