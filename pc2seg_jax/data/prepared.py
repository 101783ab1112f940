"""Random access to what `python -m pc2seg_jax.prepare` has written."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from pc2seg_jax.data.builders import make
from pc2seg_jax.data.quiet_tensorflow import tf
from pc2seg_jax.errors import UserError


class Records(NamedTuple):
    """A split of n images.

    ids: n names, sorted. sizes: [n, 2] int64, (height, width). read: index -> the encoded image (JPEG or PNG) and its
    label (grey PNG of class ids, 255 where there is none); may be called from several threads at once. class_names: in
    the order of the ids.
    """

    ids: tuple[str, ...]
    sizes: np.ndarray
    read: Callable[[int], tuple[bytes, bytes]]
    class_names: tuple[str, ...]


def open_split(name: str, split: str, data_dir: str | None = None) -> Records:
    """Opens a split without reading its records.

    Args:
      name: one of `builders.NAMES`. split: train, val, or aug of VOC.
      data_dir: the folder of all prepared datasets, local or gs://...; None is that of TFDS.

    Raises:
      UserError: where the dataset is not prepared or has no such split.
    """
    builder = make(name, data_dir)
    command = f"python -m pc2seg_jax.prepare --dataset={name}" + (f" --data_dir={data_dir}" if data_dir else "")
    if not builder.is_prepared():
        raise UserError(f"{name} is not prepared in {builder.data_dir}: run {command}")
    splits = builder.info.splits
    if split not in splits:
        raise UserError(f"{name} has no split {split!r}: use one of {', '.join(splits)}.")
    damaged = f"The dataset in {builder.data_dir} is damaged: delete that folder and run {command}"
    shards = splits[split].file_instructions
    try:
        metadata = builder.info.metadata
        ids, sizes = tuple(metadata[split]["ids"].split(" ")), np.array(metadata[split]["sizes"], np.int64)
    except (KeyError, ValueError) as error:
        raise UserError(damaged) from error
    if not all(epath.Path(shard.filename).exists() for shard in shards):
        raise UserError(damaged)
    records = ArrayRecordDataSource(shards)

    def read(index: int) -> tuple[bytes, bytes]:
        try:
            record = records[index]
        except (RuntimeError, IndexError) as error:
            raise UserError(damaged) from error
        features = tf.train.Example.FromString(record).features.feature
        return features["image"].bytes_list.value[0], features["label"].bytes_list.value[0]

    return Records(ids, sizes, read, tuple(metadata["class_names"]))
