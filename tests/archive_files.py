"""VOC 2012, SBD, Cityscapes and COCO as small archives in the formats in which they are published.

Each function returns (archives, truth): archives is {file name: {member: bytes}}, to be changed by a test and written
by `write`; truth is {split: {id: (bytes of the image, label [h, w])}}.
"""

import io
import json
import tarfile
import zipfile

import numpy as np
from PIL import Image
from scipy.io import savemat

VOC, SBD = "VOCtrainval_11-May-2012.tar", "benchmark.tgz"
VOC_ROOT, SBD_ROOT = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"
CITY_IMAGES, CITY_LABELS = "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"
COCO_TRAIN, COCO_VAL, COCO_JSON = "train2017.zip", "val2017.zip", "annotations_trainval2017.zip"
COCO_CATEGORIES = [id_ for id_ in range(1, 91) if id_ not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def write(folder, archives):
    for file, members in archives.items():
        if file.endswith(".zip"):
            with zipfile.ZipFile(folder / file, "w") as archive:
                for member, content in members.items():
                    archive.writestr(member, content)
        else:
            with tarfile.open(folder / file, "w:gz" if file.endswith(".tgz") else "w") as archive:
                for member, content in members.items():
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))


def picture(seed, size, kind="JPEG", mode="RGB"):
    """The bytes of an image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def index_png(ids, palette=False):
    image = Image.fromarray(ids)
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def mat(ids):
    """A file of SBD's folder cls: a struct GTcls with the mask and what else is in it."""
    file = io.BytesIO()
    present = np.unique(ids[ids > 0]).reshape(-1, 1)
    savemat(file, {"GTcls": {"Boundaries": np.zeros((20, 1)), "Segmentation": ids, "CategoriesPresent": present}})
    return file.getvalue()


def voc():
    """Two images each of train, aug and val; SBD also has one of train and one of val, with other masks."""
    lists = {
        "train": ["2009_000010", "2007_000032"],
        "aug": ["2010_000004", "2008_000002"],
        "val": ["2011_000003", "2007_000033"],
    }
    voc, sbd, truth = {}, {}, {}
    rng = np.random.default_rng(1)
    for split, ids in lists.items():
        for seed, id_ in enumerate(ids):
            size = (9 + seed, 14 + len(split))
            image, label = picture(seed, size), rng.integers(0, 21, size, dtype=np.uint8)
            voc[f"{VOC_ROOT}/JPEGImages/{id_}.jpg"] = image
            if split == "aug":
                sbd[f"{SBD_ROOT}/cls/{id_}.mat"] = mat(label)
            else:
                label[[0, -1]] = 255
                voc[f"{VOC_ROOT}/SegmentationClass/{id_}.png"] = index_png(label, palette=True)
            truth.setdefault(split, {})[id_] = image, label
        if split != "aug":
            voc[f"{VOC_ROOT}/ImageSets/Segmentation/{split}.txt"] = "".join(f"{id_}\n" for id_ in ids).encode()
            sbd[f"{SBD_ROOT}/cls/{ids[0]}.mat"] = mat(np.zeros((9, 14 + len(split)), np.uint8))
            sbd[f"{SBD_ROOT}/img/{ids[0]}.jpg"] = b"not read"
    return {VOC: voc, SBD: sbd}, truth


def cityscapes():
    """Two images of train, of two cities, and one of val; every id from 0 to 33 occurs in each label."""
    train_ids = dict(zip((7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33), range(19), strict=True))
    lists = {"train": ["bochum_000000_000313", "aachen_000012_000019"], "val": ["munster_000001_000019"]}
    images, labels, truth = {"README": b""}, {}, {}
    for split, ids in lists.items():
        for seed, id_ in enumerate(ids):
            stem = f"{split}/{id_.split('_')[0]}/{id_}"
            image, size = picture(seed, (8, 16), "PNG"), (8, 16)
            raw = np.random.default_rng(seed).permutation(np.arange(128) % 34).reshape(size).astype(np.uint8)
            images[f"leftImg8bit/{stem}_leftImg8bit.png"] = image
            labels[f"gtFine/{stem}_gtFine_labelIds.png"] = index_png(raw)
            labels[f"gtFine/{stem}_gtFine_color.png"] = b"not read"
            label = np.array([[train_ids.get(int(id_), 255) for id_ in row] for row in raw], np.uint8)
            truth.setdefault(split, {})[id_] = image, label
    images["leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png"] = b"not read"
    return {CITY_IMAGES: images, CITY_LABELS: labels}, truth


def rectangle(top, left, bottom, right):
    """A polygon."""
    return [left, top, right, top, right, bottom, left, bottom]


def run_lengths(pixels):
    """Lengths of alternating runs of 0 and 1, column by column, beginning with 0."""
    counts, value = [0], 0
    for pixel in pixels.T.ravel().astype(int):
        if pixel != value:
            counts, value = [*counts, 0], pixel
        counts[-1] += 1
    return {"size": list(pixels.shape), "counts": counts}


def annotation(image_id, category_id, segmentation, crowd=0):
    return {"image_id": image_id, "category_id": category_id, "segmentation": segmentation, "iscrowd": crowd, "area": 0}


def coco():
    """Image 9: instances that overlap each other and a crowd; 25: grey, without annotations; 581: one of two parts."""
    crowd = np.zeros((12, 15), bool)
    crowd[2:9, 1:4] = crowd[5, 4:14] = True
    train = [
        annotation(9, 90, [rectangle(0, 2, 6, 8)]),
        annotation(9, 1, run_lengths(crowd), crowd=1),
        annotation(9, 13, [rectangle(4, 6, 7, 9)]),
        annotation(9, 3, [rectangle(3, 7, 9, 12)]),
    ]
    label = np.zeros((12, 15), np.uint8)
    label[crowd] = 1
    label[0:6, 2:8] = 80  # 36 pixels
    label[3:9, 7:12] = 3  # 30 pixels
    label[4:7, 6:9] = 12  # 9 pixels
    parts = np.zeros((10, 11), np.uint8)
    parts[1:3, 1:4] = parts[5:9, 2:10] = 2
    images = {
        "train": {"000000000581": (picture(0, (10, 11)), parts), "000000000009": (picture(1, (12, 15)), label)},
        "val": {"000000000025": (picture(2, (7, 9), mode="L"), np.zeros((7, 9), np.uint8))},
    }
    train.append(annotation(581, 2, [rectangle(1, 1, 3, 4), rectangle(5, 2, 9, 10)]))
    archives = {COCO_TRAIN: {}, COCO_VAL: {}, COCO_JSON: {}}
    for split, annotations in {"train": train, "val": []}.items():
        for id_, (image, _) in images[split].items():
            archives[f"{split}2017.zip"][f"{split}2017/{id_}.jpg"] = image
        sizes = {id_: label.shape for id_, (_, label) in images[split].items()}
        archives[COCO_JSON][f"annotations/instances_{split}2017.json"] = coco_json(sizes, annotations)
    return archives, images


def coco_json(sizes, annotations):
    """The categories are those of COCO, in another order."""
    from pc2seg_jax.data.builders.coco_seg import CocoSeg

    names = dict(zip(COCO_CATEGORIES, CocoSeg.CLASS_NAMES[1:], strict=True))
    instances = {
        "categories": [{"id": id_, "name": names[id_]} for id_ in reversed(COCO_CATEGORIES)],
        "images": [
            {"id": int(id_), "height": h, "width": w, "file_name": f"{id_}.jpg"} for id_, (h, w) in sizes.items()
        ],
        "annotations": annotations,
    }
    return json.dumps(instances).encode()


MAKE = {"voc2012_seg": voc, "cityscapes_seg": cityscapes, "coco_seg": coco}


def dataset_of(archive):
    """The name of the dataset that an archive belongs to."""
    return next(name for name, make in MAKE.items() if archive in make()[0])


def expect_small(monkeypatch):
    """Makes the builders expect as many images as the small archives have, and know neither hashes nor addresses."""
    from pc2seg_jax.data.builders import BUILDERS

    for name, builder in BUILDERS.items():
        _, truth = MAKE[name]()
        monkeypatch.setattr(builder, "COUNTS", {split: len(truth[split]) for split in builder.COUNTS})
        monkeypatch.setattr(builder, "ARCHIVES", tuple(type(archive)(archive.filename) for archive in builder.ARCHIVES))
