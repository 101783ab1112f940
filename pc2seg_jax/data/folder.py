"""Your own images: a folder with images/, masks/ and list files, checked completely before training starts.

root/images/<stem>.jpg|jpeg|png     RGB or grey, of any size
root/masks/<stem>.png               index or palette PNG, for labelled and validation images only
root/labeled.txt train.txt val.txt  one stem per line
root/classes.txt                    optional, one class name per line
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pc2seg_jax.data.sources import DECODE_ERRORS, Dataset, Source, check_image, decode_mask, file_source, unreadable
from pc2seg_jax.data.splits import IMAGE_SUFFIXES, canonical, choose, is_rule
from pc2seg_jax.errors import UserError


class Split(NamedTuple):
    """One list of the folder: the list file or the rule, the stems, and the files they stand for."""

    path: Path | str
    stems: tuple[str, ...]
    images: tuple[Path, ...]
    masks: tuple[Path, ...] | None
    sizes: np.ndarray


def load_folder(
    root: str | Path,
    *,
    labeled: str = "labeled.txt",
    unlabeled: str = "train.txt",
    val: str = "val.txt",
    ignore_id: int = 255,
    max_side: int = 0,
    masks_for_unlabeled: bool = False,
) -> Dataset:
    """Reads and checks a folder dataset.

    Labelled and validation images and their masks are decoded fully, unlabelled images by their header only, and masks
    of unlabelled images are never opened (unless asked for). Without classes.txt the classes are 0 .. the largest id in
    the labelled and validation masks.

    Args:
      root: the folder, laid out as in the text at the top of this module.
      labeled, unlabeled, val: list files, relative to `root` or absolute. A labelled stem may also be unlabelled.
        `labeled` may also be a rule over the unlabelled list, "every 1/8 with seed 0" (`splits.choose`).
      ignore_id: the id of pixels that have no class.
      max_side: where positive, larger images are shrunk to this longer side when they are read.
      masks_for_unlabeled: give the unlabelled source its masks, for measuring only.

    Raises:
      UserError: whatever is wrong with the folder, naming the file and what to do.
    """
    root = Path(root)
    for folder in (root, root / "images", root / "masks"):
        if not folder.is_dir():
            raise UserError(f"Folder {folder} does not exist: it must hold images/, masks/ and the list files.")
    given, listings, splits = {"labeled": labeled, "unlabeled": unlabeled, "val": val}, {}, {}
    for name, file in given.items():
        if name == "labeled" and is_rule(file):
            listed_in, stems = file, choose(file, dataset=None, train_ids=_read_list(root / unlabeled)).ids
        else:
            listed_in, stems = root / file, _read_list(root / file)
        with_masks = name != "unlabeled" or masks_for_unlabeled
        splits[name] = _load_split(root, listed_in, stems, listings, with_masks=with_masks)
    for name in ("labeled", "unlabeled"):
        _check_disjoint(splits[name], splits["val"])
    class_names = _read_class_names(root / "classes.txt", ignore_id)
    checked = [split for split in splits.values() if split.masks]
    largest = max(_check_masks(split, len(class_names), ignore_id) for split in checked)
    if not class_names:
        class_names = tuple(f"class_{id_}" for id_ in range(largest + 1))
        if 0 <= ignore_id <= largest:
            raise UserError(
                f"The masks in {root / 'masks'} hold ids up to {largest}, and the ignore id {ignore_id} is among them: "
                "renumber the masks so that classes are 0, 1, ... and ignored pixels have a larger id, such as 255."
            )
    if len(class_names) < 2:
        raise UserError(
            f"The masks in {root / 'masks'} hold fewer than 2 classes besides the ignore id {ignore_id}: "
            "check that they hold class ids 0, 1, ..., or name the classes in classes.txt."
        )
    sources = {name: _source(split, max_side, f"{root.name}/{given[name]}") for name, split in splits.items()}
    return Dataset(class_names, _palette(splits["labeled"].masks[0]), ignore_id=ignore_id, **sources)


def _source(split: Split, max_side: int, name: str) -> Source:
    return file_source(split.images, split.masks, split.stems, sizes=split.sizes, max_side=max_side, name=name)


def _load_split(root: Path, path: Path | str, stems: Sequence[str], listings: dict, *, with_masks: bool) -> Split:
    images = tuple(_find_image(root / "images", stem, path, listings) for stem in stems)
    sizes = np.array([_image_size(image) for image in images], np.int64)
    masks = None
    if with_masks:
        masks = tuple(root / "masks" / f"{stem}.png" for stem in stems)
        for stem, mask in zip(stems, masks, strict=True):
            if not mask.is_file():
                raise UserError(
                    f"Mask {mask} of '{stem}' in {path} does not exist: add the mask, or remove the line from the list."
                )
    return Split(path, tuple(stems), images, masks, sizes)


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"List file {path} does not exist: create it with one image name per line.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {path} as UTF-8 text ({error}): save it as plain text.") from error
    return [line.strip() for line in text.splitlines()]


def _read_list(path: Path) -> tuple[str, ...]:
    first_line = {}
    for number, line in enumerate(_read_lines(path), start=1):
        if not line:
            continue
        stem = canonical(line, dataset=None)
        if stem.startswith(("/", "../")):
            raise UserError(f"'{line}' in {path} (line {number}) is not below images/: write a name such as photo_1.")
        if stem in first_line:
            raise UserError(f"'{stem}' is twice in {path} (lines {first_line[stem]} and {number}): remove one of them.")
        first_line[stem] = number
    if not first_line:
        raise UserError(f"List file {path} is empty: write one image name per line.")
    return tuple(first_line)


def _find_image(folder: Path, stem: str, listed_in: Path, listings: dict) -> Path:
    target = folder / stem
    if target.parent not in listings:  # one directory listing instead of a look-up per image and suffix
        listings[target.parent] = _by_stem(target.parent)
    names = listings[target.parent].get(target.name, [])
    usable = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    if len(usable) == 1:
        return target.parent / usable[0]
    if usable:
        raise UserError(f"'{stem}' in {listed_in} fits {' and '.join(sorted(usable))} in {folder}: keep only one.")
    if names:
        raise UserError(
            f"Image {target.parent / names[0]} of '{stem}' in {listed_in} has an unsupported extension: "
            "convert it to .jpg or .png."
        )
    raise UserError(
        f"'{stem}' in {listed_in} has no image {target}.jpg, .jpeg or .png: add the image, or remove the line."
    )


def _by_stem(folder: Path) -> dict[str, list[str]]:
    names = {}
    for name in os.listdir(folder) if folder.is_dir() else ():
        names.setdefault(name[: len(name) - len(Path(name).suffix)], []).append(name)
    return names


def _image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the header of a JPEG or 8-bit PNG."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            kind = image.format
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from error
    if kind not in ("JPEG", "PNG"):
        raise UserError(f"Image {path} is a {kind} file in spite of its extension: convert it to JPEG or PNG.")
    if kind == "PNG" and _png_bits(path) == 16:
        raise UserError(f"Image {path} has 16 bits per channel: convert it to 8 bits.")
    return height, width


def _png_bits(path: Path) -> int:
    """Bits per sample from the PNG header, where Pillow reports the depth after its own conversion."""
    with open(path, "rb") as file:
        return file.read(25)[24]


def _check_disjoint(train: Split, val: Split) -> None:
    shared = sorted(set(train.stems) & set(val.stems))
    if shared:
        raise UserError(
            f"'{shared[0]}' is in both {train.path} and {val.path} ({len(shared)} such images): "
            "validation images must not be trained on, so remove them from one of the lists."
        )


def _read_class_names(path: Path, ignore_id: int) -> tuple[str, ...]:
    """Names in the order of the ids; empty where there is no file."""
    names = tuple(line for line in _read_lines(path) if line) if path.exists() else ()
    if path.exists() and not names:
        raise UserError(f"Class file {path} is empty: write one class name per line, or delete it.")
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UserError(f"Class file {path} names '{twice[0]}' twice: results are told by name, so rename one of them.")
    if 0 <= ignore_id < len(names):
        raise UserError(f"The ignore id {ignore_id} is also class '{names[ignore_id]}' of {path}: choose another one.")
    return names


def _check_masks(split: Split, classes: int, ignore_id: int) -> int:
    """Decodes every image and mask of a split; returns the largest class id (-1 where there is none)."""
    largest = -1
    for image, mask, size in zip(split.images, split.masks, split.sizes, strict=True):
        check_image(image)
        ids = np.unique(_checked_mask(mask, image, tuple(size)))
        ids = ids[ids != ignore_id]
        if classes and ids.size and ids[-1] >= classes:
            raise UserError(
                f"Mask {mask} holds the id {ids[-1]}, but classes.txt names {classes} classes (ids 0 to {classes - 1}) "
                f"and the ignore id is {ignore_id}: correct the mask, classes.txt or the ignore id."
            )
        largest = max(largest, *ids.tolist(), -1)
    return largest


def _checked_mask(path: Path, image: Path, size: tuple[int, int]) -> np.ndarray:
    """Ids [h, w] of a mask whose header fits."""
    try:
        with Image.open(path) as mask:
            kind, mode, found = mask.format, mask.mode, mask.size[::-1]
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from error
    if kind != "PNG":
        raise UserError(f"Mask {path} is a {kind} file in spite of its extension: save it as an index PNG.")
    bits = _png_bits(path)
    if mode not in ("L", "P", "1") or (mode == "L" and bits != 8):
        raise UserError(
            f"Mask {path} is a {bits}-bit PNG of mode {mode}, but a mask holds one class id per pixel, no colours: "
            "convert it to an 8-bit index PNG (Pillow mode L or P)."
        )
    if found != size:
        raise UserError(
            f"Mask {path} is {found[0]}x{found[1]} (height x width) but its image {image} is {size[0]}x{size[1]}: "
            "make the sizes equal."
        )
    return decode_mask(path)


def _palette(mask: Path) -> np.ndarray:
    """Colours [256, 3] uint8 of a palette PNG, otherwise those of Pascal VOC."""
    palette = voc_palette()
    with Image.open(mask) as image:
        if image.mode == "P":
            colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            palette[: len(colours)] = colours
    return palette


def voc_palette() -> np.ndarray:
    """The colour map of Pascal VOC, [256, 3] uint8: bit 3k + c of the id is bit 7 - k of channel c."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for k in range(3):
        for channel in range(3):
            palette[:, channel] |= ((ids >> (3 * k + channel) & 1) << (7 - k)).astype(np.uint8)
    return palette
