"""Prepares a dataset of the paper once, for random access by `train` and `evaluate`.

python -m pc2seg_jax.prepare --dataset=voc2012_seg|cityscapes_seg|coco_seg[/rule] [--data_dir=DIR] [--manual_dir=DIR]

VOC 2012 (with SBD) and COCO are downloaded; archives that you have are taken from --manual_dir, and those of
Cityscapes, which need a login, must be there. Archives are read where they are, never unpacked.
"""

from absl import flags

from pc2seg_jax import cli

_DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "voc2012_seg, cityscapes_seg or coco_seg; or coco_seg/RULE, with RULE small_on_top (the default), crowd_ignored, "
    "overlap_ignored or crowd_and_overlap_ignored.",
    required=True,
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of all prepared datasets, local or gs://...; ~/tensorflow_datasets or $TFDS_DATA_DIR."
)
_MANUAL_DIR = flags.DEFINE_string(
    "manual_dir", None, "Folder of archives that you have fetched by hand; downloads/manual in --data_dir."
)


def main(argv: list[str]) -> None:
    del argv
    from pc2seg_jax.data.builders.preparation import prepare  # takes seconds to import

    prepared = prepare(_DATASET.value, data_dir=_DATA_DIR.value, manual_dir=_MANUAL_DIR.value)
    counts = ", ".join(f"{split} {count:,}" for split, count in prepared.counts.items())
    state = "prepared" if prepared.new else "was prepared before"
    print(f"{_DATASET.value} {state} in {prepared.folder}: {counts} images")


if __name__ == "__main__":
    cli.run(main)
