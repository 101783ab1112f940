"""What the builders share: the features, and the checks that every image and label passes while it is written."""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from pc2seg_jax.data.builders.archives import Archive, File, locate, reading
from pc2seg_jax.data.quiet_tfds import tfds
from pc2seg_jax.data.sources import decode_image_bytes
from pc2seg_jax.errors import UserError

IGNORE_ID = 255
# TFDS sorts the records of a split by their keys, 128 bits, in 1000 parts of equal width, and each part in memory.
# Keys over the whole width keep the parts small: with 0, 1, 2, ... the whole split would be one part.
KEYS = 2**128


class Label(NamedTuple):
    """ids: uint8 [h, w], class ids or 255. name: of the file, for messages."""

    name: str
    ids: np.ndarray


class Split(NamedTuple):
    """The images of a split. read: id -> encoded image and label; each id is read once, in the order of the ids."""

    ids: Sequence[str]
    read: Callable[[str], tuple[File, Label]]


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builder of a dataset whose record i of a split is the image with the i-th id in sorted order.

    Images keep their original bytes. Labels are grey PNGs of class ids, because TensorFlow decodes those of a palette
    PNG to colours. `info.metadata` holds `class_names` and, for each split, `ids` (joined by spaces) and `sizes`
    (height and width of each image).
    """

    VERSION = tfds.core.Version("1.0.0")
    HOMEPAGE: ClassVar[str]
    CLASS_NAMES: ClassVar[tuple[str, ...]]
    COUNTS: ClassVar[dict[str, int]]  # images of every split, as published
    ARCHIVES: ClassVar[tuple[Archive, ...]]

    def _open(self, *paths: epath.Path) -> dict[str, Split]:
        """The splits in the archives at `paths`, which are in the order of ARCHIVES."""
        raise NotImplementedError

    @property
    def url_infos(self) -> dict[str, tfds.download.checksums.UrlInfo]:
        """What TFDS checks a download by."""
        return {
            archive.address: tfds.download.checksums.UrlInfo(archive.size, archive.sha256, archive.filename)
            for archive in self.ARCHIVES
            if archive.sha256
        }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            homepage=self.HOMEPAGE,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="png"),
                    "id": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(class_names=self.CLASS_NAMES),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        splits = self._open(*(locate(archive, self, dl_manager) for archive in self.ARCHIVES))
        for name, count in self.COUNTS.items():
            found = len(splits[name].ids)
            if found != count:
                files = " and ".join(archive.filename for archive in self.ARCHIVES)
                raise UserError(
                    f"{files} hold {found} images of the split {name} of {self.name} instead of {count}: "
                    "fetch the published archives."
                )
        return {name: self._generate_examples(name, splits[name]) for name in self.COUNTS}

    def _generate_examples(self, name: str, split: Split) -> Iterator[tuple[int, dict]]:
        ids = sorted(split.ids)
        sizes = []
        for index, id_ in enumerate(ids):
            image, label = split.read(id_)
            self._check(image, label)
            sizes.append(label.ids.shape)
            yield index * (KEYS // len(ids)), {"image": image.content, "label": encode_ids(label.ids), "id": id_}
        self.info.metadata[name] = {"ids": " ".join(ids), "sizes": sizes}

    def _check(self, image: File, label: Label) -> None:
        with reading(image.name):
            size = decode_image_bytes(image.content).shape[:2]
        if label.ids.shape != size:
            found, wanted = (f"{height}x{width}" for height, width in (label.ids.shape, size))
            raise UserError(f"{label.name} is {found} (height x width) but its image {image.name} is {wanted}.")
        classes = len(self.CLASS_NAMES)
        wrong = label.ids[(label.ids >= classes) & (label.ids != IGNORE_ID)]
        if wrong.size:
            raise UserError(f"{label.name} holds the id {wrong[0]}, expected 0 to {classes - 1} or {IGNORE_ID}.")


def encode_ids(ids: np.ndarray) -> bytes:
    """Ids uint8 [h, w] as a grey PNG."""
    file = io.BytesIO()
    Image.fromarray(ids).save(file, "PNG")
    return file.getvalue()


def decode_ids(file: File) -> Label:
    """The ids of a grey or palette PNG.

    Raises:
      UserError: for a file that cannot be read, or holds colours.
    """
    with reading(file.name), Image.open(io.BytesIO(file.content)) as image:
        if image.mode not in ("L", "P"):
            raise ValueError(f"a label of mode {image.mode}, which holds no class ids")
        return Label(file.name, np.asarray(image))
