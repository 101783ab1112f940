"""Builders of TensorFlow Datasets for the datasets of the paper; importing this package registers them with TFDS."""

from etils import epath
from google.protobuf import json_format

from pc2seg_jax.data.builders.archives import one_line
from pc2seg_jax.data.builders.cityscapes_seg import CityscapesSeg
from pc2seg_jax.data.builders.coco_seg import CocoSeg
from pc2seg_jax.data.builders.segmentation import SegmentationBuilder
from pc2seg_jax.data.builders.voc2012_seg import Voc2012Seg
from pc2seg_jax.data.quiet_tensorflow import tf
from pc2seg_jax.errors import UserError

FILE_FORMAT = "array_record"  # the one of TFDS with random access
BUILDERS = {builder.name: builder for builder in (Voc2012Seg, CityscapesSeg, CocoSeg)}
# A dataset with several rules is also known without one: then it is the first of them.
NAMES = tuple(
    name for dataset, cls in BUILDERS.items() for name in (dataset, *(f"{dataset}/{c}" for c in cls.builder_configs))
)


def make(name: str, data_dir: str | None = None) -> SegmentationBuilder:
    """The builder of a dataset, which may be prepared in `data_dir` or not.

    Args:
      name: one of NAMES.
      data_dir: the folder of all prepared datasets, local or gs://...; None is that of TFDS.

    Raises:
      UserError: for an unknown name, and where the folder cannot be read or holds the dataset in another format.
    """
    if name not in NAMES:
        raise UserError(f"There is no dataset {name!r}: use one of {', '.join(NAMES)}.")
    dataset, _, config = name.partition("/")
    try:
        root = epath.Path(data_dir).expanduser() if data_dir else None
        builder = BUILDERS[dataset](config=config or None, data_dir=root)
    except (OSError, KeyError, tf.errors.OpError, json_format.ParseError) as error:  # KeyError: x://
        where = data_dir or "the folder of TFDS"
        raise UserError(f"Cannot look for {name} in {where} ({one_line(error)}): name another folder.") from error
    if builder.info.splits and builder.info.file_format.value != FILE_FORMAT:
        raise UserError(
            f"{builder.data_dir} holds {name} as {builder.info.file_format.value}, which has no random access: "
            f"name another folder, to prepare it as {FILE_FORMAT}."
        )
    return builder
