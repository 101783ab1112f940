"""Cityscapes, fine annotations."""

from functools import partial
from pathlib import PurePosixPath
from typing import ClassVar

import numpy as np
from etils import epath

from pc2seg_jax.data.builders.archives import Archive, File, Members
from pc2seg_jax.data.builders.segmentation import IGNORE_ID, Label, SegmentationBuilder, Split, decode_ids

_IMAGE, _LABEL = "_leftImg8bit.png", "_gtFine_labelIds.png"
# The ids of the label files that are evaluated, in the order of the classes; all others are ignored.
_EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_TRAIN_IDS = np.full(256, IGNORE_ID, np.uint8)
_TRAIN_IDS[list(_EVALUATED)] = range(len(_EVALUATED))


class CityscapesSeg(SegmentationBuilder):
    """Cityscapes with fine annotations: the 19 classes of its benchmark, 255 elsewhere; ids as aachen_000000_000019."""

    HOMEPAGE = "https://www.cityscapes-dataset.com/"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "log in at https://www.cityscapes-dataset.com/downloads/, fetch leftImg8bit_trainvaltest.zip and "
        "gtFine_trainvaltest.zip, and name the folder of the two .zip files as --manual_dir"
    )
    CLASS_NAMES = (
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    )  # fmt: skip
    COUNTS: ClassVar[dict[str, int]] = {"train": 2975, "val": 500}
    ARCHIVES = (Archive("leftImg8bit_trainvaltest.zip"), Archive("gtFine_trainvaltest.zip"))

    def _open(self, images_path: epath.Path, labels_path: epath.Path) -> dict[str, Split]:
        images, labels = Members(images_path), Members(labels_path)

        def read(name: str, id_: str) -> tuple[File, Label]:
            stem = f"{name}/{id_.split('_')[0]}/{id_}"
            label = decode_ids(labels.read(f"gtFine/{stem}{_LABEL}"))
            return images.read(f"leftImg8bit/{stem}{_IMAGE}"), label._replace(ids=_TRAIN_IDS[label.ids])

        splits = {}
        for name in self.COUNTS:
            files = [
                member for member in images if member.startswith(f"leftImg8bit/{name}/") and member.endswith(_IMAGE)
            ]
            ids = [PurePosixPath(file).name.removesuffix(_IMAGE) for file in files]
            splits[name] = Split(ids, partial(read, name))
        return splits
