"""COCO 2017 as semantic segmentation, one prepared dataset per rule for crowds and overlaps.

Preparing holds all annotations in memory, which takes about 4 GB.
"""

import dataclasses
import json
from collections import defaultdict
from typing import ClassVar

from etils import epath

from pc2seg_jax.data.builders.archives import Archive, File, Members, reading
from pc2seg_jax.data.builders.coco_labels import draw_label
from pc2seg_jax.data.builders.segmentation import IGNORE_ID, Label, SegmentationBuilder, Split
from pc2seg_jax.data.quiet_tfds import tfds
from pc2seg_jax.errors import UserError

_IMAGES = "http://images.cocodataset.org"


@dataclasses.dataclass(eq=False)
class CocoConfig(tfds.core.BuilderConfig):
    """A rule: whether crowd regions are 255 instead of their class, and whether overlaps of instances are 255."""

    ignore_crowd: bool = False
    ignore_overlap: bool = False


class CocoSeg(SegmentationBuilder):
    """COCO 2017: background and 80 classes in the order of their category ids; images without annotations are kept.

    Crowd regions are drawn first, then instances by decreasing area. *Deviation*: the rule and the order of classes of
    the paper are not published.
    """

    HOMEPAGE = "https://cocodataset.org/"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "train2017.zip, val2017.zip and annotations_trainval2017.zip are downloaded, unless they are in this folder."
    )
    BUILDER_CONFIGS: ClassVar[list[CocoConfig]] = [
        CocoConfig(name="small_on_top", description="Crowd regions have their class, overlaps that of the smallest."),
        CocoConfig(name="crowd_ignored", ignore_crowd=True, description="Crowd regions are 255."),
        CocoConfig(name="overlap_ignored", ignore_overlap=True, description="Overlaps of instances are 255."),
        CocoConfig(
            name="crowd_and_overlap_ignored",
            ignore_crowd=True,
            ignore_overlap=True,
            description="Crowd regions and overlaps of instances are 255.",
        ),
    ]
    CLASS_NAMES = (
        "background",
        "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
        "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
        "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
        "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
        "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
        "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
        "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
        "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
        "hair drier", "toothbrush",
    )  # fmt: skip
    COUNTS: ClassVar[dict[str, int]] = {"train": 118287, "val": 5000}
    ARCHIVES = (
        Archive(
            "train2017.zip",
            f"{_IMAGES}/zips/train2017.zip",
            size=19336861798,
            sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        ),
        Archive(
            "val2017.zip",
            f"{_IMAGES}/zips/val2017.zip",
            size=815585330,
            sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        ),
        Archive(
            "annotations_trainval2017.zip",
            f"{_IMAGES}/annotations/annotations_trainval2017.zip",
            size=252907541,
            sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        ),
    )

    def _open(self, train_path: epath.Path, val_path: epath.Path, annotations_path: epath.Path) -> dict[str, Split]:
        annotations = Members(annotations_path)
        paths = {"train": train_path, "val": val_path}
        return {name: self._open_split(name, Members(path), annotations) for name, path in paths.items()}

    def _open_split(self, split: str, images: Members, annotations: Members) -> Split:
        json_name, content = annotations.read(f"annotations/instances_{split}2017.json")
        with reading(json_name, KeyError, TypeError):
            instances = json.loads(content)
            categories = {category["id"]: category["name"] for category in instances["categories"]}
            sizes = {f"{image['id']:012d}": (image["height"], image["width"]) for image in instances["images"]}
            by_image = defaultdict(list)
            for annotation in instances["annotations"]:
                by_image[f"{annotation['image_id']:012d}"].append(annotation)
        class_ids = {category: class_id for class_id, category in enumerate(sorted(categories), start=1)}
        if tuple(categories[category] for category in class_ids) != self.CLASS_NAMES[1:]:
            raise UserError(f"The categories in {json_name} are not the {len(self.CLASS_NAMES) - 1} of COCO.")

        def read(id_: str) -> tuple[File, Label]:
            name = f"the annotations of {id_} in {json_name}"
            with reading(name, Exception):  # pycocotools raises all kinds
                rule = self.builder_config
                ids = draw_label(
                    by_image[id_],
                    sizes[id_],
                    class_ids,
                    ignore_crowd=rule.ignore_crowd,
                    ignore_overlap=rule.ignore_overlap,
                    ignore_id=IGNORE_ID,
                )
            return images.read(f"{split}2017/{id_}.jpg"), Label(name, ids)

        return Split(list(sizes), read)
