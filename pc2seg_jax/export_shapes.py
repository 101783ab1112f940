"""Writes the embedded dataset `shapes` as a folder: an example of the layout for own images, and images to predict on.

python -m pc2seg_jax.export_shapes --output=FOLDER [--num_labeled=20 --num_unlabeled=1000 --num_val=200]

The folder can be trained on: --config.data.dataset=folder --config.data.root=FOLDER.
"""

from absl import flags

from pc2seg_jax import cli
from pc2seg_jax.files import local_path

_OUTPUT = flags.DEFINE_string("output", None, "The folder: new or empty.", required=True)
_NUM_LABELED = flags.DEFINE_integer("num_labeled", 20, "Labelled images.", lower_bound=1)
_NUM_UNLABELED = flags.DEFINE_integer(
    "num_unlabeled", 1000, "Unlabelled images, the labelled ones among them.", lower_bound=1
)
_NUM_VAL = flags.DEFINE_integer("num_val", 200, "Evaluation images.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the generator.", lower_bound=0)
_SIZE = flags.DEFINE_integer("size", 97, "Height and width in pixels.", lower_bound=33)


def main(argv: list[str]) -> None:
    del argv
    from pc2seg_jax.data.folder_writer import write_folder
    from pc2seg_jax.data.shapes import load_shapes
    from pc2seg_jax.errors import UserError

    if _NUM_LABELED.value > _NUM_UNLABELED.value:
        raise UserError(
            f"--num_labeled={_NUM_LABELED.value} is more than --num_unlabeled={_NUM_UNLABELED.value}: the labelled "
            "images are the first of the unlabelled ones, so lower one or raise the other"
        )
    output = local_path("--output", _OUTPUT.value)
    dataset = load_shapes(
        num_labeled=_NUM_LABELED.value,
        num_unlabeled=_NUM_UNLABELED.value,
        num_val=_NUM_VAL.value,
        size=_SIZE.value,
        seed=_SEED.value,
    )
    write_folder(dataset, output)
    print(
        f"wrote {len(dataset.unlabeled.ids)} training images ({len(dataset.labeled.ids)} with masks) and "
        f"{len(dataset.val.ids)} val images with masks to {output}"
    )


if __name__ == "__main__":
    cli.run(main)
