"""A dataset written out as files, in the layout that `data.folder` reads."""

from pathlib import Path

import numpy as np
from PIL import Image

from pc2seg_jax.data.sources import Dataset, Source
from pc2seg_jax.errors import UserError


def write_folder(dataset: Dataset, root: str | Path) -> None:
    """Writes images/, masks/, the three lists and classes.txt; `load_folder(root)` then gives the same pixels and ids.

    Images and masks are PNG files, masks with the dataset's palette. Masks of unlabelled images are not written, so
    that nothing can read them.

    Raises:
      UserError: when `root` exists and is not an empty folder.
    """
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} exists and is not an empty folder: name a new or an empty one as --output")
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    _write_images(dataset.unlabeled, root / "images")
    for source in (dataset.labeled, dataset.val):
        _write_images(source, root / "images")
        _write_masks(source, root / "masks", dataset.palette)
    for name, source in {"labeled": dataset.labeled, "train": dataset.unlabeled, "val": dataset.val}.items():
        (root / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in source.ids))
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in dataset.class_names))


def _write_images(source: Source, folder: Path) -> None:
    for index, stem in enumerate(source.ids):
        path = folder / f"{stem}.png"
        if not path.exists():  # labelled images are usually unlabelled ones too
            Image.fromarray(source.read_image(index)).save(path)


def _write_masks(source: Source, folder: Path, palette: np.ndarray) -> None:
    for index, stem in enumerate(source.ids):
        mask = Image.fromarray(source.read_mask(index))
        mask.putpalette(palette.tobytes())
        mask.save(folder / f"{stem}.png")
