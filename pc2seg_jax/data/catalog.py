"""The datasets of the paper as `python -m pc2seg_jax.prepare` has stored them, with named lists of images."""

from typing import NamedTuple

import numpy as np

from pc2seg_jax.data import prepared
from pc2seg_jax.data.folder import voc_palette
from pc2seg_jax.data.sources import (
    DECODE_ERRORS,
    Dataset,
    Source,
    decode_image_bytes,
    decode_mask_bytes,
    shrunk,
    unreadable,
)
from pc2seg_jax.data.splits import Split, choose, is_rule
from pc2seg_jax.errors import UserError

BUILDERS = {"voc2012": "voc2012_seg", "cityscapes": "cityscapes_seg", "coco": "coco_seg"}
IGNORE_ID = 255  # in the labels of all three
_CITYSCAPES_COLORS = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
    (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip


class Pool(NamedTuple):
    """Stored images under their ids, from one or more stored splits."""

    records: tuple[prepared.Records, ...]
    places: dict[str, tuple[int, int]]  # id: number of the split, number of the record in it

    def source(self, split: Split, *, masks: bool) -> Source:
        """The images of a list, in its order."""
        places = [self.places[id_] for id_ in split.ids]
        sizes = np.array([self.records[number].sizes[index] for number, index in places], np.int64).reshape(-1, 2)

        def read(index: int, part: int, decode):
            number, record = places[index]
            try:
                return decode(self.records[number].read(record)[part])
            except DECODE_ERRORS as error:
                raise unreadable(f"{split.ids[index]} in the prepared dataset", error) from error

        return Source(
            split.ids,
            lambda index: read(index, 0, decode_image_bytes),
            (lambda index: read(index, 1, decode_mask_bytes)) if masks else None,
            sizes,
            split.name,
        )


def load_prepared(
    dataset: str,
    *,
    data_dir: str = "",
    rule: str = "",
    labeled: str,
    unlabeled: str,
    val: str,
    max_side: int = 0,
    masks_for_unlabeled: bool = False,
) -> Dataset:
    """Opens a dataset without reading an image; labels of unlabelled images are never decoded (unless asked for).

    Args:
      dataset: one of `BUILDERS`.
      data_dir: as for `prepare`, "" for its default.
      rule: of COCO's labels, "" for the first: see `builders.coco_seg`.
      labeled, unlabeled: `train`; for VOC also `train_aug`, with the images and labels of SBD; or what `splits.choose`
        knows: a named list, a rule over `train`, or a file.
      val: `val`, or a file of ids.
      max_side: see `sources.shrunk`.
      masks_for_unlabeled: give the unlabelled source its masks, for measuring only.

    Raises:
      UserError: where the dataset is not prepared, or a list is unknown or does not fit.
    """
    builder = f"{BUILDERS[dataset]}/{rule}" if rule else BUILDERS[dataset]
    pools = {name: _open(builder, (name,), data_dir) for name in ("train", "val")}
    if dataset == "voc2012":
        pools["train_aug"] = _open(builder, ("train", "aug"), data_dir)
    largest = pools.get("train_aug", pools["train"])

    def pick(spec: str) -> Split:
        if spec in ("train", "train_aug") and spec in pools:
            return Split(f"{dataset}/{spec}", tuple(sorted(pools[spec].places)))
        return choose(spec, dataset=dataset, train_ids=tuple((pools["train"] if is_rule(spec) else largest).places))

    everything = tuple(pools["val"].places)
    sources = {
        "labeled": largest.source(pick(labeled), masks=True),
        "unlabeled": largest.source(pick(unlabeled), masks=masks_for_unlabeled),
        "val": pools["val"].source(
            Split(f"{dataset}/val", everything) if val == "val" else choose(val, dataset=dataset, train_ids=everything),
            masks=True,
        ),
    }
    sources = {name: shrunk(source, max_side) for name, source in sources.items()}
    palette = voc_palette()
    if dataset == "cityscapes":
        palette[: len(_CITYSCAPES_COLORS)] = _CITYSCAPES_COLORS
    return Dataset(pools["val"].records[0].class_names, palette, ignore_id=IGNORE_ID, **sources)


def _open(builder: str, splits: tuple[str, ...], data_dir: str) -> Pool:
    records = tuple(prepared.open_split(builder, split, data_dir or None) for split in splits)
    places = {id_: (number, index) for number, record in enumerate(records) for index, id_ in enumerate(record.ids)}
    if len(places) != sum(len(record.ids) for record in records):
        raise UserError(
            f"{builder} holds an image twice: delete its folder in --config.data.root and prepare it again."
        )
    return Pool(records, places)
