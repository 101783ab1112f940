"""The builders on small archives in the published formats: what they write, and the sentence where they cannot."""

import functools
import hashlib
import io
import json
import os

import archive_files as files
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from tensorflow_datasets.core import shuffle

from pc2seg_jax.data import builders
from pc2seg_jax.data.builders.archives import Archive
from pc2seg_jax.data.builders.coco_labels import draw_label
from pc2seg_jax.data.builders.preparation import prepare
from pc2seg_jax.data.prepared import open_split
from pc2seg_jax.data.quiet_tfds import tfds
from pc2seg_jax.errors import UserError

PUBLISHED = {name: (cls.COUNTS, cls.ARCHIVES) for name, cls in builders.BUILDERS.items()}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    files.expect_small(monkeypatch)


@pytest.fixture
def manual(tmp_path):
    (tmp_path / "manual").mkdir()
    return tmp_path / "manual"


@pytest.fixture
def prepared(tmp_path, manual):
    """`prepared(name, archives) -> data_dir`."""

    def run(name, archives):
        files.write(manual, archives)
        prepare(name, data_dir=str(tmp_path / "data"), manual_dir=str(manual))
        return str(tmp_path / "data")

    return run


def decode(png):
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.asarray(image)


def test_the_published_datasets():
    names = {name: cls.CLASS_NAMES for name, cls in builders.BUILDERS.items()}
    assert {name: (len(classes), len(set(classes))) for name, classes in names.items()} == {
        "voc2012_seg": (21, 21),
        "cityscapes_seg": (19, 19),
        "coco_seg": (81, 81),
    }
    assert [names["voc2012_seg"][index] for index in (0, 15, 20)] == ["background", "person", "tvmonitor"]
    assert [names["cityscapes_seg"][index] for index in (0, 11, 18)] == ["road", "person", "bicycle"]
    assert [names["coco_seg"][index] for index in (0, 1, 12, 80)] == ["background", "person", "stop sign", "toothbrush"]
    assert {name: counts for name, (counts, _) in PUBLISHED.items()} == {
        "voc2012_seg": {"train": 1464, "aug": 10582 - 1464, "val": 1449},
        "cityscapes_seg": {"train": 2975, "val": 500},
        "coco_seg": {"train": 118287, "val": 5000},
    }
    for archive in (archive for _, archives in PUBLISHED.values() for archive in archives):
        assert not archive.sha256 or (len(bytes.fromhex(archive.sha256)) == 32 and archive.size)
        assert not archive.md5 or len(bytes.fromhex(archive.md5)) == 16
        assert not archive.address or archive.address.endswith(f"/{archive.filename}")


@pytest.mark.parametrize("name", files.MAKE)
def test_records_are_the_original_images_and_class_ids_in_the_order_of_the_ids(name, prepared):
    archives, truth = files.MAKE[name]()
    data_dir = prepared(name, archives)
    for split, examples in truth.items():
        records = open_split(name, split, data_dir)
        assert records.ids == tuple(sorted(examples))
        assert records.class_names == builders.BUILDERS[name].CLASS_NAMES
        assert records.sizes.dtype == np.int64
        for index, id_ in enumerate(records.ids):
            image, label = records.read(index)
            assert image == examples[id_][0]
            np.testing.assert_array_equal(decode(label), examples[id_][1])
            assert tuple(records.sizes[index]) == examples[id_][1].shape


@pytest.mark.parametrize("name", files.MAKE)
def test_tfds_gives_the_same_ids_and_labels(name, prepared, tmp_path, manual):
    """As a data source of what was prepared, and as a `tf.data.Dataset` of what `tfds.load` writes by itself."""
    archives, truth = files.MAKE[name]()
    source = tfds.data_source(name, split="train", data_dir=prepared(name, archives))
    config = tfds.download.DownloadConfig(manual_dir=manual)
    dataset = tfds.load(
        name, split="train", data_dir=tmp_path / "tf", download_and_prepare_kwargs={"download_config": config}
    )
    assert len(dataset) == len(truth["train"])
    for record, example, id_ in zip(source, dataset.as_numpy_iterator(), sorted(truth["train"]), strict=True):
        for found in (record, example):
            label = truth["train"][id_][1]
            assert found["id"] == id_.encode()
            assert found["image"].shape == (*label.shape, 3)
            np.testing.assert_array_equal(found["label"], label[..., None])


def test_large_splits_are_sorted_in_small_parts(prepared, monkeypatch):
    """TFDS sorts on disk what is larger than its buffer, in parts that it chooses by key and holds in memory."""
    parts = []

    def spy(*args, **kwargs):
        parts.append(get_bucket_number(*args, **kwargs))
        return parts[-1]

    get_bucket_number = shuffle.get_bucket_number
    monkeypatch.setattr(shuffle, "get_bucket_number", spy)
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 0)
    archives, truth = files.voc()
    records = open_split("voc2012_seg", "train", prepared("voc2012_seg", archives))
    assert [records.read(index)[0] for index in range(2)] == [truth["train"][id_][0] for id_ in sorted(truth["train"])]
    assert parts == [0, 500, 0, 500, 0, 500]


def slow_label(regions, size, *, ignore_crowd, ignore_overlap):
    """Every pixel by itself. regions: (pixels [h, w] bool, class id, whether a crowd), in the order of the file."""
    label = np.zeros(size, np.uint8)
    for y, x in np.ndindex(size):
        here = [region for region in regions if region[0][y, x]]
        crowds = [class_id for _, class_id, crowd in here if crowd]
        instances = [(pixels.sum(), -order, id_) for order, (pixels, id_, crowd) in enumerate(here) if not crowd]
        if instances:
            label[y, x] = 255 if ignore_overlap and len(instances) > 1 else min(instances)[-1]
        elif crowds:
            label[y, x] = 255 if ignore_crowd else crowds[-1]
    return label


@pytest.mark.parametrize(
    ("rule", "ignored"),
    [
        ("small_on_top", {}),
        ("crowd_ignored", {"ignore_crowd": True}),
        ("overlap_ignored", {"ignore_overlap": True}),
        ("crowd_and_overlap_ignored", {"ignore_crowd": True, "ignore_overlap": True}),
    ],
)
def test_coco_labels_follow_the_rule_of_their_name(rule, ignored, prepared):
    """Rectangles, some equally large, as polygons or run lengths; crowds between and over instances."""
    size, regions, annotations = (12, 15), [], []
    rng = np.random.default_rng(3)
    for order in range(14):
        top, left = rng.integers(0, 9, 2).tolist()
        bottom, right = top + int(rng.integers(2, 4)), left + int(rng.integers(2, 6))
        pixels = np.zeros(size, bool)
        pixels[top:bottom, left:right] = True
        crowd, class_id = order % 4 == 1, int(rng.integers(1, 81))
        regions.append((pixels, class_id, crowd))
        drawn = files.run_lengths(pixels) if crowd or order % 3 == 0 else [files.rectangle(top, left, bottom, right)]
        annotations.append(files.annotation(9, files.COCO_CATEGORIES[class_id - 1], drawn, crowd))
    archives, truth = files.coco()
    sizes = {id_: label.shape for id_, (_, label) in truth["train"].items()}
    archives[files.COCO_JSON]["annotations/instances_train2017.json"] = files.coco_json(sizes, annotations)
    records = open_split(f"coco_seg/{rule}", "train", prepared(f"coco_seg/{rule}", archives))
    expected = slow_label(regions, size, **{"ignore_crowd": False, "ignore_overlap": False} | ignored)
    np.testing.assert_array_equal(decode(records.read(0)[1]), expected)
    assert (255 in expected) == bool(ignored)


def test_compressed_run_lengths_and_lines():
    pixels = np.zeros((6, 5), bool)
    pixels[1:4, 2:4] = True
    compressed = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    as_json = {"size": list(compressed["size"]), "counts": compressed["counts"].decode()}
    line = files.annotation(1, 5, [[0, 0, 4, 5]])  # two points
    draw = functools.partial(draw_label, class_ids={5: 7}, ignore_crowd=False, ignore_overlap=True, ignore_id=255)
    np.testing.assert_array_equal(draw([files.annotation(1, 5, as_json), line], (6, 5)), 7 * pixels)


def drop(member):
    return lambda members: members.pop(member)


def replace(member, content):
    return lambda members: members.__setitem__(member, content)


def change_json(change):
    def apply(members):
        instances = json.loads(members[JSON])
        change(instances)
        members[JSON] = json.dumps(instances).encode()

    return apply


def change_annotation(change):
    return change_json(lambda instances: change(instances["annotations"][0]))


VOC_IMAGE = f"{files.VOC_ROOT}/JPEGImages/2007_000032.jpg"
VOC_MASK = f"{files.VOC_ROOT}/SegmentationClass/2007_000032.png"
VOC_SIZE = (10, 19)
VOC_LIST = f"{files.VOC_ROOT}/ImageSets/Segmentation/val.txt"
SBD_MASK = f"{files.SBD_ROOT}/cls/2010_000004.mat"
CITY_IMAGE = "leftImg8bit/val/munster/munster_000001_000019_leftImg8bit.png"
CITY_MASK = "gtFine/val/munster/munster_000001_000019_gtFine_labelIds.png"
COCO_IMAGE = "train2017/000000000009.jpg"
JSON = "annotations/instances_train2017.json"
ANNOTATIONS = f"the annotations of 000000000009 in {JSON}"
WRONG_MEMBERS = [
    (files.VOC, drop(VOC_IMAGE), [VOC_IMAGE]),
    (files.VOC, replace(VOC_IMAGE, files.picture(0, VOC_SIZE)[:-90]), [VOC_IMAGE, "truncated"]),
    (files.VOC, drop(VOC_MASK), [VOC_MASK]),
    (files.VOC, replace(VOC_MASK, b"PNG"), [VOC_MASK]),
    (files.VOC, replace(VOC_MASK, files.picture(0, VOC_SIZE, "PNG")), [VOC_MASK, "RGB"]),
    (files.VOC, replace(VOC_MASK, files.index_png(np.zeros((9, 19), np.uint8))), [VOC_MASK, "9x19", "10x19"]),
    (files.VOC, replace(VOC_MASK, files.index_png(np.full(VOC_SIZE, 21, np.uint8))), [VOC_MASK, "id 21", "0 to 20 or"]),
    (files.VOC, drop(VOC_LIST), [VOC_LIST]),
    (files.VOC, replace(VOC_LIST, b"\xff"), [VOC_LIST]),
    (files.SBD, replace(SBD_MASK, b"MATLAB"), [SBD_MASK]),
    (files.SBD, drop(SBD_MASK), ["1 images", "aug", "instead of 2"]),
    (files.CITY_LABELS, drop(CITY_MASK), [CITY_MASK]),
    (files.CITY_IMAGES, drop(CITY_IMAGE), ["0 images", "val", "instead of 1"]),
    (files.CITY_IMAGES, replace(CITY_IMAGE, b""), [CITY_IMAGE]),
    (files.COCO_TRAIN, drop(COCO_IMAGE), [COCO_IMAGE]),
    (files.COCO_TRAIN, replace(COCO_IMAGE, files.picture(0, (13, 15))), [COCO_IMAGE, "13x15", "12x15"]),
    (files.COCO_JSON, drop(JSON), [JSON]),
    (files.COCO_JSON, replace(JSON, b'{"images": ['), [JSON]),
    (files.COCO_JSON, replace(JSON, b"[]"), [JSON]),
    (files.COCO_JSON, change_json(lambda instances: instances["categories"].pop()), [JSON, "80"]),
    (files.COCO_JSON, change_annotation(lambda first: first.update(category_id=12)), [ANNOTATIONS, "12"]),
    (files.COCO_JSON, change_annotation(lambda first: first.update(segmentation=None)), [ANNOTATIONS]),
    (
        files.COCO_JSON,
        change_annotation(lambda first: first.update(segmentation={"size": [12, 15], "counts": [9, 3]})),
        [ANNOTATIONS, "(12, 15)"],
    ),
]


def assert_repairable(name, words, tmp_path, manual, repair):
    """One sentence with the words, nothing left behind, and success after `repair()`."""
    data_dir = tmp_path / "data"
    with pytest.raises(UserError) as error:
        prepare(name, data_dir=str(data_dir), manual_dir=str(manual))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert [path.name for path in data_dir.iterdir()] == ["downloads"]
    assert not [path for path in data_dir.rglob("*") if path.is_file()]
    with pytest.raises(UserError, match="is not prepared"):
        open_split(name, "val", str(data_dir))
    repair()
    assert prepare(name, data_dir=str(data_dir), manual_dir=str(manual)).new


@pytest.mark.parametrize(("archive", "change", "words"), WRONG_MEMBERS)
def test_a_wrong_member_is_named_and_nothing_is_left(archive, change, words, tmp_path, manual):
    name = files.dataset_of(archive)
    right, _ = files.MAKE[name]()
    archives, _ = files.MAKE[name]()
    change(archives[archive])
    files.write(manual, archives)
    assert_repairable(name, [archive, *words], tmp_path, manual, lambda: files.write(manual, right))


def truncate(path):
    os.truncate(path, path.stat().st_size * 2 // 3)


def flip(path):
    """A bit of the middle of the largest member."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("archive", "damage"),
    [
        *[(archive, truncate) for archive in (files.VOC, files.SBD, files.CITY_IMAGES, files.COCO_VAL)],
        *[(archive, flip) for archive in (files.SBD, files.CITY_IMAGES)],
        *[(archive, lambda path: path.write_text("404")) for archive in (files.VOC, files.SBD, files.CITY_LABELS)],
        *[(archive, lambda path: path.write_bytes(b"")) for archive in (files.VOC, files.SBD, files.COCO_JSON)],
    ],
)
def test_a_damaged_archive_is_named_and_nothing_is_left(archive, damage, tmp_path, manual):
    name = files.dataset_of(archive)
    archives, _ = files.MAKE[name]()
    files.write(manual, archives)
    damage(manual / archive)
    assert_repairable(name, [archive], tmp_path, manual, lambda: files.write(manual, archives))


@pytest.mark.parametrize("what", ["size", "sha256", "md5"])
def test_another_file_than_the_published_one_is_refused(what, tmp_path, manual, monkeypatch):
    archives, _ = files.voc()
    files.write(manual, archives)
    path = manual / files.VOC
    content = path.read_bytes()
    published = len(content) if what == "size" else hashlib.new(what, content).hexdigest()
    voc = Archive(files.VOC, **{what: published})
    monkeypatch.setattr(builders.BUILDERS["voc2012_seg"], "ARCHIVES", (voc, Archive(files.SBD)))
    path.write_bytes(content + b"\0")
    instead = f"instead of {published:,}" if what == "size" else f"instead of {published}"
    assert_repairable("voc2012_seg", [str(path), instead], tmp_path, manual, lambda: path.write_bytes(content))
