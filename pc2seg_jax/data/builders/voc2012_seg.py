"""Pascal VOC 2012, and the masks of the Semantic Boundaries Dataset (SBD) for more of its images."""

import io
import os
import tarfile
from pathlib import PurePosixPath
from typing import ClassVar

import numpy as np
from etils import epath
from scipy.io import loadmat
from tqdm import tqdm

from pc2seg_jax.data.builders.archives import Archive, File, Members, reading
from pc2seg_jax.data.builders.segmentation import Label, SegmentationBuilder, Split, decode_ids, encode_ids

_VOC = "VOCdevkit/VOC2012"
_SBD = "benchmark_RELEASE/dataset/cls/"


class Voc2012Seg(SegmentationBuilder):
    """Pascal VOC 2012: 21 classes, 255 where the border of an object has none.

    `train` and `val` are the official lists; `aug` are the images that SBD has masks of and that are in neither, with
    SBD's masks, which have no border. `train` and `aug` together are the usual 10,582 images.
    """

    HOMEPAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "VOCtrainval_11-May-2012.tar and benchmark.tgz (SBD) are downloaded, unless they are in this folder."
    )
    CLASS_NAMES = (
        "background",
        "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    )  # fmt: skip
    COUNTS: ClassVar[dict[str, int]] = {"train": 1464, "aug": 9118, "val": 1449}
    ARCHIVES = (
        Archive(
            "VOCtrainval_11-May-2012.tar",
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            size=1999639040,
            sha256="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
        ),
        Archive(
            "benchmark.tgz",
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
            md5="82b4d87ceb2ed10f6038a1cba92111cb",
        ),
    )

    def _open(self, voc_path: epath.Path, sbd_path: epath.Path) -> dict[str, Split]:
        voc = Members(voc_path)
        ids = {name: _read_list(voc, name) for name in ("train", "val")}
        sbd = _read_sbd(sbd_path, without={*ids["train"], *ids["val"]})

        def read_voc(id_: str) -> tuple[File, Label]:
            return read_image(id_), decode_ids(voc.read(f"{_VOC}/SegmentationClass/{id_}.png"))

        def read_sbd(id_: str) -> tuple[File, Label]:
            return read_image(id_), decode_ids(sbd[id_])

        def read_image(id_: str) -> File:
            return voc.read(f"{_VOC}/JPEGImages/{id_}.jpg")

        return {name: Split(ids[name], read_voc) for name in ids} | {"aug": Split(list(sbd), read_sbd)}


def _read_list(voc: Members, name: str) -> list[str]:
    file = voc.read(f"{_VOC}/ImageSets/Segmentation/{name}.txt")
    with reading(file.name):
        return file.content.decode().split()


def _read_sbd(path: epath.Path, without: set[str]) -> dict[str, File]:
    """The masks as PNG files by id, read in one pass, because a .tgz has no random access."""
    masks = {}
    with (
        reading(path),
        open(path, "rb") as file,
        tqdm.wrapattr(file, "read", os.path.getsize(path), desc=f"Reading {path.name}", leave=False) as stream,
        tarfile.open(fileobj=stream, mode="r|gz") as archive,
    ):
        for info in archive:
            member = PurePosixPath(info.name)
            if info.name.startswith(_SBD) and member.suffix == ".mat" and member.stem not in without:
                name = f"{member} in {path}"
                with reading(name, Exception):  # SciPy raises all kinds
                    ids = loadmat(io.BytesIO(archive.extractfile(info).read()), simplify_cells=True)
                    masks[member.stem] = File(name, encode_ids(ids["GTcls"]["Segmentation"].astype(np.uint8)))
    return masks
