"""From archives to training: the lists, pixels and names of the prepared datasets, and a run on one of them."""

import io
import json

import archive_files
import numpy as np
import pytest
from PIL import Image

from pc2seg_jax import training
from pc2seg_jax.data.builders import BUILDERS, preparation
from pc2seg_jax.data.builders.archives import Archive
from pc2seg_jax.data.catalog import load_prepared
from pc2seg_jax.errors import UserError
from pc2seg_jax.parallel import make_shardings

MAKERS = {
    "voc2012": archive_files.voc,
    "cityscapes": archive_files.cityscapes,
    "coco": archive_files.coco,
}
NAMES = {"voc2012": "voc2012_seg", "cityscapes": "cityscapes_seg", "coco": "coco_seg"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The folder of all three prepared datasets, and their truth {dataset: {split: {id: (bytes, label)}}}."""
    data_dir, truths = tmp_path_factory.mktemp("tfds"), {}
    with pytest.MonkeyPatch.context() as patch:
        for dataset, make in MAKERS.items():
            manual = tmp_path_factory.mktemp("manual")
            archives, truths[dataset] = make()
            archive_files.write(manual, archives)
            builder = BUILDERS[NAMES[dataset]]
            patch.setattr(builder, "ARCHIVES", tuple(Archive(archive.filename) for archive in builder.ARCHIVES))
            patch.setattr(builder, "COUNTS", {split: len(images) for split, images in truths[dataset].items()})
            preparation.prepare(NAMES[dataset], data_dir=str(data_dir), manual_dir=str(manual))
    return data_dir, truths


def load(stored, dataset, **changes):
    lists = {"labeled": "train", "unlabeled": "train", "val": "val"}
    return load_prepared(dataset, data_dir=str(stored[0]), **(lists | changes))


@pytest.mark.parametrize("dataset", MAKERS)
def test_lists_pixels_and_sizes_are_those_of_the_archives(stored, dataset):
    data, truth = load(stored, dataset), stored[1][dataset]
    assert data.ignore_id == 255
    assert len(data.class_names) == {"voc2012": 21, "cityscapes": 19, "coco": 81}[dataset]
    assert data.palette.shape == (256, 3)
    assert data.unlabeled.read_mask is None
    for source, split in ((data.labeled, "train"), (data.unlabeled, "train"), (data.val, "val")):
        assert list(source.ids) == sorted(truth[split])
        assert source.name == f"{dataset}/{split}"
        for index, id_ in enumerate(source.ids):
            encoded, label = truth[split][id_]
            np.testing.assert_array_equal(source.read_image(index), Image.open(io.BytesIO(encoded)).convert("RGB"))
            assert tuple(source.sizes[index]) == label.shape
            if source.read_mask:
                np.testing.assert_array_equal(source.read_mask(index), label)


def test_voc_with_sbd_takes_each_mask_from_its_own_archive(stored):
    data = load(stored, "voc2012", unlabeled="train_aug", masks_for_unlabeled=True)
    truth = stored[1]["voc2012"]
    assert list(data.unlabeled.ids) == sorted([*truth["train"], *truth["aug"]])
    assert data.unlabeled.name == "voc2012/train_aug"
    for index, id_ in enumerate(data.unlabeled.ids):
        np.testing.assert_array_equal(data.unlabeled.read_mask(index), (truth["train"] | truth["aug"])[id_][1])


def test_lists_by_rule_and_from_a_file(stored, tmp_path):
    truth = stored[1]["voc2012"]
    data = load(stored, "voc2012", labeled="every 1/2 with seed 0", unlabeled="train_aug")
    train = sorted(truth["train"])
    assert list(data.labeled.ids) == [train[np.random.RandomState(0).permutation(2)[0]]]
    chosen = [next(iter(truth["aug"])), next(iter(truth["train"]))]
    (tmp_path / "mine.txt").write_text("".join(f"JPEGImages/{id_}.jpg\n" for id_ in chosen))
    data = load(stored, "voc2012", labeled=str(tmp_path / "mine.txt"))
    assert list(data.labeled.ids) == chosen
    assert data.labeled.name == str(tmp_path / "mine.txt")
    np.testing.assert_array_equal(data.labeled.read_mask(0), truth["aug"][chosen[0]][1])


def test_images_can_be_shrunk(stored):
    data = load(stored, "cityscapes", max_side=8)
    np.testing.assert_array_equal(data.val.sizes, [[4, 8]])
    assert data.val.read_image(0).shape == (4, 8, 3)
    assert data.val.read_mask(0).shape == (4, 8)
    assert set(np.unique(data.val.read_mask(0))) <= {*range(19), 255}


@pytest.mark.parametrize(
    ("dataset", "changes", "words"),
    [
        (
            "voc2012",
            {"data_dir": "/nowhere"},
            ["voc2012_seg is not prepared", "pc2seg_jax.prepare --dataset=voc2012_seg"],
        ),
        ("voc2012", {"labeled": "1_7"}, ["'1_7'", "1_16_2", "every 1/N"]),
        ("cityscapes", {"labeled": "1_8_seed12345"}, ["cityscapes/1_8_seed12345", "2 are others"]),
        ("cityscapes", {"unlabeled": "train_aug"}, ["'train_aug'"]),
        ("coco", {"rule": "largest_on_top"}, ["coco_seg/largest_on_top", "crowd_ignored"]),
        ("coco", {"rule": "crowd_ignored"}, ["not prepared", "--dataset=coco_seg/crowd_ignored"]),
    ],
)
def test_what_cannot_be_had_is_said_with_what_to_do(stored, dataset, changes, words):
    lists = {"labeled": "train", "unlabeled": "train", "val": "val", "data_dir": str(stored[0])}
    with pytest.raises(UserError) as error:
        load_prepared(dataset, **(lists | changes))
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_a_run_on_voc(stored, tmp_path, tiny_config):
    """From records to an evaluated checkpoint, with a second mean, and the lists saved with the run."""
    config = tiny_config(
        data__dataset="voc2012",
        data__root=str(stored[0]),
        data__labeled="train",
        data__unlabeled="train_aug",
        data__val="val",
        eval__mean_without=("background", "person"),
        steps=2,
    )
    result = training.train_and_evaluate(config, tmp_path / "run", make_shardings(1))
    assert result["split"]["name"] == "voc2012/val"
    assert result["miou_without"]["classes"] == ["background", "person"]
    shown = [value for name, value in result["iou"].items() if value is not None]
    kept = [v for name, v in result["iou"].items() if v is not None and name not in ("background", "person")]
    np.testing.assert_allclose(result["miou"], np.mean(shown))
    np.testing.assert_allclose(result["miou_without"]["miou"], np.mean(kept))
    info = json.loads((tmp_path / "run" / "dataset.json").read_text())
    assert {role: split["count"] for role, split in info["splits"].items()} == {"labeled": 2, "unlabeled": 4, "val": 2}


def test_a_class_that_does_not_exist_cannot_be_left_out(tmp_path, tiny_config, train):
    with pytest.raises(
        UserError, match=r"config.eval.mean_without names 'road', expected among the classes: background"
    ):
        train(tiny_config(eval__mean_without=("road",)), tmp_path / "run")
