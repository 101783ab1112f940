"""What is in the data of a configuration, what looks wrong with it, and how fast it comes."""

import itertools
import time
from collections.abc import Iterable
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import tqdm

from pc2seg_jax import training
from pc2seg_jax.data.pipeline import available_cores
from pc2seg_jax.data.sources import Dataset, Source
from pc2seg_jax.errors import UserError

ROLES = ("labeled", "unlabeled", "val")


class Contents(NamedTuple):
    """What was found in one source.

    read: images that were opened, evenly spaced over the source. sizes: [n, 2] of all images. grey: share of the opened
    images without colour. pixels: [256] counts of every id in the opened masks, and showing: [256] how many of these
    masks hold it; None where there are no masks.
    """

    role: str
    read: int
    sizes: np.ndarray
    grey: float
    pixels: np.ndarray | None
    showing: np.ndarray | None


def look_into(source: Source, role: str, limit: int) -> Contents:
    """Opens up to `limit` images (0: all) with their masks, evenly spaced."""
    count = len(source.ids)
    indices = np.linspace(0, count - 1, min(limit or count, count)).round().astype(int)
    grey, masks = 0, source.read_mask is not None
    pixels, showing = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for index in tqdm.tqdm(indices, desc=role, unit="image", leave=False, disable=None):
        image = source.read_image(int(index))
        grey += bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())
        if masks:
            found = np.bincount(source.read_mask(int(index)).ravel(), minlength=256)
            pixels += found
            showing += found > 0
    share = grey / len(indices)
    return Contents(role, len(indices), source.sizes, share, *((pixels, showing) if masks else (None, None)))


def warnings(contents: Iterable[Contents], dataset: Dataset, crop_size: tuple[int, int]) -> list[str]:
    """A sentence for everything that can be trained on but is probably not what was meant."""
    found, by_role = [], {content.role: content for content in contents}
    names, ignore = dataset.class_names, dataset.ignore_id
    shown = {}
    for role, content in by_role.items():
        if content.pixels is None:
            continue
        used = {int(id_) for id_ in np.flatnonzero(content.pixels)}
        shown[role] = used & set(range(len(names)))
        ignored = content.pixels[ignore] / content.pixels.sum() if 0 <= ignore < 256 else 0.0
        if used == {0, 255} and ignore == 255 and len(names) > 1:
            found.append(
                f"{role}: the masks hold only 0 and 255, the ignore id, so that nothing but '{names[0]}' is learnt: "
                "write 1 instead of 255, or set another --config.data.ignore_id and name 256 classes"
            )
        elif ignored > 0.5:
            found.append(f"{role}: {ignored:.0%} of the pixels have the ignore id {ignore}: is it a class?")
        if len(shown[role]) == 1:
            found.append(f"{role}: the masks hold one class only, '{names[min(shown[role])]}'")
    learnt = shown["labeled"]
    for text, missing in (
        ("in no labelled mask, so they cannot be learnt", sorted(shown["val"] - learnt)),
        ("in no mask at all", sorted(set(range(len(names))) - learnt - shown["val"])),
    ):
        if missing:
            listed = ", ".join(f"{id_} {names[id_]}" for id_ in missing[:8]) + (" ..." if len(missing) > 8 else "")
            found.append(f"classes {text}: {listed}")
    if len(names) > 64 and all(name == f"class_{id_}" for id_, name in enumerate(names)):
        found.append(
            f"the masks hold ids up to {len(names) - 1} and classes.txt does not name them: are these grey levels "
            "rather than class ids?"
        )
    area = np.median(np.concatenate([content.sizes.prod(1) for content in by_role.values()]))
    if area > 9 * np.prod(crop_size):
        found.append(
            f"the median image is {area / np.prod(crop_size):.0f} times as large as the crop, so that the network sees "
            f"little of it at a time: shrink with --config.data.max_side={2 * max(crop_size)} or so"
        )
    if all(content.grey == 1 for content in by_role.values()):
        found.append("no image has colours: changes of saturation and hue will do nothing")
    return found


def describe(contents: Contents, source: Source, sha256: str, crop_size: tuple[int, int]) -> str:
    """Two lines: which images, and how large."""
    areas = contents.sizes.prod(1)
    order = np.argsort(areas, kind="stable")
    smallest, median, largest = ("x".join(map(str, contents.sizes[order[i]])) for i in (0, len(order) // 2, -1))
    small = (contents.sizes < crop_size).any(1).mean()
    return (
        f"{contents.role}: {len(source.ids)} images ({source.name}, sha256 {sha256[:8]}), {contents.read} opened\n"
        f"  height x width {smallest} to {largest}, median {median}; {small:.0%} have a side below the crop "
        f"{crop_size[0]}x{crop_size[1]}"
    )


def class_table(contents: Iterable[Contents], dataset: Dataset) -> str:
    """Of every class the share of pixels, and the images that show it, in each source with masks."""
    with_masks = [content for content in contents if content.pixels is not None]
    head = f"{'id':>5}  {'class':<{max(map(len, [*dataset.class_names, 'ignored']))}}"
    width = len(head)
    lines = [head + "".join(f"  {content.role + ' pixels':>18}  {'images':>7}" for content in with_masks)]
    rows = [*enumerate(dataset.class_names)]
    if 0 <= dataset.ignore_id < 256:
        rows.append((dataset.ignore_id, "ignored"))
    for id_, name in rows:
        line = f"{id_:>5}  {name}".ljust(width)
        for content in with_masks:
            share = content.pixels[id_] / content.pixels.sum()
            line += f"  {share:>18.2%}  {content.showing[id_]:>7}"
        lines.append(line)
    return "\n".join(lines)


def measure_rates(config: ml_collections.ConfigDict, dataset: Dataset, seconds: float) -> dict[str, float]:
    """Images per second of the whole input of a run, and of its parts, each for about `seconds` after two batches."""
    labeled_only = config.copy_and_resolve_references()
    labeled_only.objective = "supervised"
    runs = {"labelled": labeled_only}
    if config.objective != "supervised":
        runs["labelled and unlabelled together"] = config
    rates = {}
    for name, settings in runs.items():
        batches = training.training_batches(settings, dataset, 0)
        for _ in itertools.islice(batches, 2):
            pass
        start, images = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            images += sum(len(stream.image) for stream in next(batches) if stream is not None)
        rates[name] = images / (time.perf_counter() - start)
    return rates


def speed_text(rates: dict[str, float], device_rate: float) -> str:
    """The rates, and how many hosts a device rate (images per second of all devices, 0: not known) needs."""
    cores, hosts = available_cores(), jax.process_count()
    lines = [
        f"{name}: {rate:.1f} images/s on {cores} cores, {rate / cores:.1f} per core" for name, rate in rates.items()
    ]
    if device_rate:
        rate = list(rates.values())[-1]
        needed = -(-device_rate // rate)
        enough = f"enough for {device_rate:g} images/s on {hosts} host{'s' * (hosts > 1)}"
        lines.append(
            enough
            if rate * hosts >= device_rate
            else f"{device_rate:g} images/s are {device_rate / (rate * hosts):.1f} times what {hosts} such "
            f"host{'s' * (hosts > 1)} can deliver: use {needed:.0f} hosts, or more cores"
        )
    return "\n".join(lines)


def check_flags(images: int, seconds: float, device_rate: float) -> None:
    """Raises UserError for a negative number."""
    for name, value in (("images", images), ("seconds", seconds), ("device_rate", device_rate)):
        if value < 0:
            raise UserError(f"--{name} is {value}, expected 0 or more")
