"""The pictures of the report: val images with their predictions, and the negatives of an anchor."""

from typing import NamedTuple

import numpy as np

from pc2seg_jax import build, loss_pictures
from pc2seg_jax import workdir as workdir_lib
from pc2seg_jax.errors import UserError
from pc2seg_jax.mask_files import overlay
from pc2seg_jax.ops.metrics import mean_iou
from pc2seg_jax.report_markup import css_color, details, key, legend, mask, photo, text
from pc2seg_jax.reporting import Picture, Record

_GROUPS = {
    "different": (
        "Most different",
        "The val images of several classes whose mIoU the runs disagree on most.",
    ),
    "worst": ("Worst", "The val images with the lowest mIoU of the image alone{mean}, the lowest first."),
    "best": (
        "Best",
        "The val images with the highest mIoU of the image alone{mean}, the highest first; of several classes.",
    ),
    "spread": ("Spread evenly", "Over the val list, not selected."),
}


class Negatives(NamedTuple):
    """What a run draws for an anchor.

    columns: caption -> panels [H, W, 3] uint8. table: of `loss_pictures.describe`.
    """

    columns: dict[str, list[np.ndarray]]
    table: str


def draw_negatives(record: Record) -> Negatives | str:
    """The negatives of an anchor in the run's own first batch, or a sentence that says why there are none."""
    loss = record.run.config.loss
    if not loss.contrast_weight or loss.feature_loss != "pixel_contrast":
        return "This run draws no negatives: it was trained without the pixel contrastive loss."
    try:
        dataset = build.build_dataset(record.run.config)
        stored = record.run.info.splits["unlabeled"]
        if workdir_lib.describe_split(stored.name, dataset.unlabeled.ids) != stored:
            return "Left out: the list of unlabelled images has changed since training."
        scene = loss_pictures.look(record.run, dataset=dataset)
    except (UserError, OSError) as error:
        return f"Left out, because the unlabelled images cannot be read: {error}."
    found = loss_pictures.columns(scene, record.run)
    kept = dict.fromkeys(("weak view", "predicted", loss.strategy, "uniform"))
    return Negatives(
        {caption: found[caption] for caption in kept if caption in found},
        loss_pictures.describe(scene, record.run.info.class_names),
    )


def negatives_section(records: list[Record], negatives: dict[str, Negatives | str], side: int) -> str:
    """Markup; "" where no run has unlabelled images."""
    parts = []
    for record in records:
        found = negatives.get(record.name)
        if found is None:
            continue
        if len(records) > 1:
            parts.append(f"<h3>{text(record.name)}</h3>")
        parts.append(f"<p>{text(found)}</p>" if isinstance(found, str) else _scene(record, found, side))
    return "".join(parts)


def _scene(record: Record, negatives: Negatives, side: int) -> str:
    columns = negatives.columns
    note = (
        "An anchor (orange) in an unlabelled image, and the pixels that the contrastive loss pushes its feature away "
        "from (red). The brighter a place, the likelier it is drawn. The strategy of this run is "
        f"{record.run.config.loss.strategy.replace('_', ' ')}"
        + ("; uniform, which draws anywhere, stands beside it." if len(columns) == 4 else ".")
        + " Up to four images of the group, the anchor’s first."
    )
    figures = [
        photo(panels[i], f"{caption} of unlabelled image {i + 1}", caption.replace("_", " "), side, sharp=True)
        for i in range(len(next(iter(columns.values()))))
        for caption, panels in columns.items()
    ]
    return (
        f'<p class="soft">{text(note)}</p><div class="scene" style="--n: {len(columns)}">{"".join(figures)}</div>'
        + details("Negatives of every strategy in numbers", f"<pre>{text(negatives.table)}</pre>")
    )


def pictures_section(records: list[Record], pictures: list[Picture], side: int) -> str:
    """Markup; "" where there are no pictures."""
    if not pictures:
        return ""
    info = records[0].run.info
    entries = [(key(css_color(info.palette[i])), name) for i, name in enumerate(info.class_names)]
    note = (
        "Beside the truth, what is predicted: over the image, where the first class is left clear, and alone. Below "
        "it, of the counted pixels, the share that is right, and the mIoU of this image."
    )
    parts = [f'<p class="soft">{note}</p>', legend([*entries, ('<span class="key ignored"></span>', "not counted")])]
    groups = list(dict.fromkeys(picture.group for picture in pictures))
    if groups == ["spread"] and not all(record.images for record in records):
        parts.append(
            "<p>The best and the worst images are shown here once every run has stored the results of its images: "
            "python -m pc2seg_jax.evaluate does.</p>"
        )
    for group in groups:
        title, note = _GROUPS[group]
        note = note.format(mean=", mean of the runs" if len(records) > 1 else "")
        cards = "".join(_card(records, picture, side) for picture in pictures if picture.group == group)
        parts.append(
            f'<h3>{title}</h3><p class="soft">{note}</p>'
            f'<div class="gallery" style="--n: {1 + len(records)}">{cards}</div>'
        )
    return "".join(parts)


def _card(records: list[Record], picture: Picture, side: int) -> str:
    info = records[0].run.info
    palette = np.asarray(info.palette, np.uint8)
    ignored = picture.truth == info.ignore_id
    figures = [
        photo(picture.image, picture.name, "image", side),
        mask(picture.truth, ignored, palette, f"truth, {picture.name}", "truth", side),
    ]
    for record, ids in zip(records, picture.predictions, strict=True):
        over, alone = (record.name, "") if len(records) > 1 else ("overlay", "prediction: ")
        painted = overlay(picture.image, ids, palette)
        figures.append(photo(painted, f"overlay of {record.name}, {picture.name}", over, side))
        caption = alone + _scores(picture.truth[~ignored], ids[~ignored], len(info.class_names))
        figures.append(mask(ids, ignored, palette, f"prediction of {record.name}, {picture.name}", caption, side))
    return (
        f'<div class="picture"><h4>{text(picture.name)}</h4>'
        f'<div class="tiles" style="--n: {1 + len(records)}">{"".join(figures)}</div></div>'
    )


def _scores(truth: np.ndarray, ids: np.ndarray, num_classes: int) -> str:
    """Of counted pixels, [P] each."""
    if not truth.size:
        return "nothing counted"
    pairs = truth.astype(np.int64) * num_classes + ids
    confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    return f"{100 * np.mean(truth == ids):.1f} % right, mIoU {100 * mean_iou(confusion):.1f}"
