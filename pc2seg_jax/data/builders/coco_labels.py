"""One label per image from the instances of COCO, which may overlap: which one is seen is a rule, not a fact."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask


def draw_label(
    annotations: Sequence[dict],
    size: tuple[int, int],
    class_ids: dict[int, int],
    *,
    ignore_crowd: bool,
    ignore_overlap: bool,
    ignore_id: int,
) -> np.ndarray:
    """Draws the annotations of an image: crowd regions first, then instances, the smaller ones over the larger ones.

    Equally large instances are drawn in the order of the file. What nothing covers is 0, the background.

    Args:
      annotations: of one image, as in the JSON file.
      size: height and width of the image.
      class_ids: the class id of every category id.
      ignore_crowd: whether crowd regions become `ignore_id` instead of their class; instances are drawn over them.
      ignore_overlap: whether pixels that more than one instance covers become `ignore_id`; crowd regions do not count.

    Returns:
      uint8 [h, w].

    Raises:
      KeyError, TypeError, ValueError, or what pycocotools raises: where an annotation is damaged.
    """
    label = np.zeros(size, np.uint8)
    covered = np.zeros(size, np.int32)
    crowds = [annotation for annotation in annotations if annotation["iscrowd"]]
    for annotation in crowds:
        class_id = class_ids[annotation["category_id"]]
        label[_pixels(_encode(annotation["segmentation"], size))] = ignore_id if ignore_crowd else class_id
    instances = [
        (_encode(annotation["segmentation"], size), class_ids[annotation["category_id"]])
        for annotation in annotations
        if not annotation["iscrowd"]
    ]
    for region, class_id in sorted(instances, key=lambda instance: -int(coco_mask.area(instance[0]))):
        pixels = _pixels(region)
        label[pixels] = class_id
        covered += pixels
    if ignore_overlap:
        label[covered > 1] = ignore_id
    return label


def _encode(segmentation: list | dict, size: tuple[int, int]) -> dict:
    """Polygons or run lengths as compressed run lengths."""
    if isinstance(segmentation, list):
        # Two points enclose nothing, and pycocotools would take their four numbers for a box.
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if polygons:
            return coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
        segmentation = {"size": size, "counts": [size[0] * size[1]]}
    counts = segmentation["counts"]
    uncompressed = isinstance(counts, list)
    if tuple(segmentation["size"]) != size or (uncompressed and sum(counts) != size[0] * size[1]):
        raise ValueError(f"run lengths of {segmentation['size']} pixels in an image of {size}")
    return coco_mask.frPyObjects(segmentation, *size) if uncompressed else segmentation


def _pixels(region: dict) -> np.ndarray:
    """Boolean [h, w]."""
    return coco_mask.decode(region).astype(bool)
