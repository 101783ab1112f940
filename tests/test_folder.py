"""A folder of one's own images: what is read, and the sentence for everything that can be wrong with it."""

import re
import shutil
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from pc2seg_jax.data.augment import AugmentParams
from pc2seg_jax.data.folder import load_folder, voc_palette
from pc2seg_jax.data.pipeline import evaluation_batches, unlabeled_stream
from pc2seg_jax.data.sources import shrunk_sizes
from pc2seg_jax.errors import UserError

SIZES = {"a": (20, 30), "b": (33, 17), "c": (25, 25), "d": (40, 21), "e": (18, 48), "f": (64, 32)}
CROP = AugmentParams(crop_size=(17, 17), cutout_size=4)


def pixels(stem):
    return np.random.default_rng(ord(stem)).integers(0, 256, (*SIZES[stem], 3), dtype=np.uint8)


def ids(stem):
    mask = np.random.default_rng(ord(stem)).integers(0, 4, SIZES[stem], dtype=np.uint8)
    mask[0] = 255
    return mask


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def append(file, line):
    file.write_text(file.read_text() + line + "\n")


def save(array, file, **options):
    Image.fromarray(array).save(file, **options)


@pytest.fixture
def root(tmp_path):
    """Labelled a, b; unlabelled a, b, e, f; validation c, d. Even letters are JPEG files. Only four masks exist."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for stem in SIZES:
        suffix = "jpg" if stem in "bdf" else "png"
        Image.fromarray(pixels(stem)).save(tmp_path / "images" / f"{stem}.{suffix}")
    for stem in "abcd":
        Image.fromarray(ids(stem)).save(tmp_path / "masks" / f"{stem}.png")
    for name, stems in {"labeled": "ab", "train": "abef", "val": "cd"}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(stems) + "\n")
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\nhorse\n")
    return tmp_path


def test_images_and_masks_are_read_as_stored(root):
    data = load_folder(root)
    assert data.class_names == ("background", "cat", "dog", "horse")
    assert (data.labeled.ids, data.unlabeled.ids, data.val.ids) == (("a", "b"), ("a", "b", "e", "f"), ("c", "d"))
    np.testing.assert_array_equal(data.labeled.sizes, [SIZES["a"], SIZES["b"]])
    np.testing.assert_array_equal(data.labeled.read_image(np.int64(0)), pixels("a"))
    with Image.open(root / "images" / "b.jpg") as image:
        np.testing.assert_array_equal(data.labeled.read_image(np.int64(1)), np.asarray(image))
    for index, stem in enumerate("cd"):
        np.testing.assert_array_equal(data.val.read_mask(np.int64(index)), ids(stem))
    assert data.unlabeled.read_mask is None
    assert data.ignore_id == 255
    np.testing.assert_array_equal(data.palette[:4], [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]])


def test_lists_may_have_blank_lines_extensions_and_other_places(root, tmp_path):
    (root / "labeled.txt").write_text("\ufeff\n a.png \n\nb.JPG\r\n", encoding="utf-8")
    other = tmp_path / "elsewhere.txt"
    other.write_text("e\n")
    data = load_folder(root, unlabeled=str(other), val="val.txt")
    assert data.labeled.ids == ("a", "b")
    assert data.unlabeled.ids == ("e",)


def test_stems_may_name_sub_folders(root):
    for folder, suffix in (("images", "png"), ("masks", "png")):
        (root / folder / "city").mkdir()
        shutil.copy(root / folder / f"a.{suffix}", root / folder / "city" / f"x.1.{suffix}")
    (root / "labeled.txt").write_text("city/x.1\n")
    data = load_folder(root)
    assert data.labeled.ids == ("city/x.1",)
    np.testing.assert_array_equal(data.labeled.read_mask(np.int64(0)), ids("a"))


def test_classes_default_to_the_ids_in_the_masks(root):
    (root / "classes.txt").unlink()
    assert load_folder(root).class_names == ("class_0", "class_1", "class_2", "class_3")


def test_palette_masks_are_read_as_indices_and_give_the_palette(root):
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    mask = Image.fromarray(ids("a"))
    mask.putpalette(palette.tobytes())
    assert mask.mode == "P"
    mask.save(root / "masks" / "a.png")
    data = load_folder(root)
    np.testing.assert_array_equal(data.labeled.read_mask(np.int64(0)), ids("a"))
    np.testing.assert_array_equal(data.palette, palette)


def test_one_bit_masks_are_classes_0_and_1(root):
    mask = ids("a") % 2 == 1
    Image.fromarray(mask).save(root / "masks" / "a.png", bits=1)
    np.testing.assert_array_equal(load_folder(root).labeled.read_mask(np.int64(0)), mask)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_grey_palette_and_alpha_images_become_rgb(root, mode):
    converted = Image.fromarray(pixels("a")).convert(mode)
    converted.save(root / "images" / "a.png")
    expected = np.asarray(converted.convert("RGB"))
    np.testing.assert_array_equal(load_folder(root).labeled.read_image(np.int64(0)), expected)


def test_large_images_are_shrunk_and_small_ones_kept(root):
    data = load_folder(root, max_side=25)
    np.testing.assert_array_equal(data.labeled.sizes, [(17, 25), (25, 13)])
    np.testing.assert_array_equal(data.val.sizes, [(25, 25), (25, 13)])
    for source in (data.labeled, data.val):
        for index, size in enumerate(source.sizes):
            assert source.read_image(np.int64(index)).shape == (*size, 3)
            assert source.read_mask(np.int64(index)).shape == tuple(size)
    np.testing.assert_array_equal(data.val.read_image(np.int64(0)), pixels("c"))
    np.testing.assert_array_equal(data.val.read_mask(np.int64(0)), ids("c"))
    assert set(np.unique(data.val.read_mask(np.int64(1)))) <= set(np.unique(ids("d")))
    # a smooth image stays what it is, whatever the filter
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 2, (64, 32, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(root / "images" / "a.png")
    Image.fromarray(np.zeros((64, 32), np.uint8)).save(root / "masks" / "a.png")
    shrunk = load_folder(root, max_side=32).labeled.read_image(0)
    np.testing.assert_allclose(shrunk[1:-1, 3, 0], np.arange(32)[1:-1] * 4 + 1, atol=0.5)


def test_shrunk_sizes_keep_the_shape_and_at_least_one_pixel():
    sizes = np.array([[100, 50], [50, 100], [10, 10], [1000, 1]])
    np.testing.assert_array_equal(shrunk_sizes(sizes, 40), [[40, 20], [20, 40], [10, 10], [40, 1]])
    np.testing.assert_array_equal(shrunk_sizes(sizes, 0), sizes)


def test_masks_of_unlabelled_images_are_never_opened(root):
    for stem in "ef":
        (root / "masks" / f"{stem}.png").write_bytes(b"this is not a mask")
    data = load_folder(root)
    batches = list(islice(unlabeled_stream(data.unlabeled, batch_size=4, seed=0, start_step=0, augment=CROP), 2))
    assert all(batch.label is None for batch in batches)


def test_masks_of_unlabelled_images_are_checked_where_asked_for(root):
    with pytest.raises(UserError, match=r"e\.png of 'e' in .*train\.txt does not exist"):
        load_folder(root, masks_for_unlabeled=True)
    for stem in "ef":
        Image.fromarray(ids(stem)).save(root / "masks" / f"{stem}.png")
    data = load_folder(root, masks_for_unlabeled=True)
    np.testing.assert_array_equal(data.unlabeled.read_mask(np.int64(3)), ids("f"))


def test_labelled_images_by_a_rule(root):
    """Half of the training images, with their masks; the ids and the name are those of the rule."""
    for stem in load_folder(root).unlabeled.ids:
        if not (root / "masks" / f"{stem}.png").exists():
            Image.fromarray(ids(stem)).save(root / "masks" / f"{stem}.png")
    data = load_folder(root, labeled="every 1/2 with seed 3")
    pool = sorted(data.unlabeled.ids)
    expected = [pool[i] for i in np.random.RandomState(3).permutation(len(pool))][::2]
    assert list(data.labeled.ids) == expected
    assert data.labeled.name == f"{root.name}/every 1/2 with seed 3"
    for index, stem in enumerate(expected):
        np.testing.assert_array_equal(data.labeled.read_mask(index), ids(stem))
    (root / "masks" / f"{expected[0]}.png").unlink()
    with pytest.raises(UserError, match=f"Mask .*{expected[0]}.png of .* in every 1/2 with seed 3 does not exist"):
        load_folder(root, labeled="every 1/2 with seed 3")


def test_evaluation_of_images_of_different_sizes(root):
    data = load_folder(root)
    (batch,) = evaluation_batches(data.val, batch_size=3, pad_size=(41, 33))
    for index, stem in enumerate("cd"):
        height, width = SIZES[stem]
        np.testing.assert_array_equal(batch.label[index, :height, :width], ids(stem))
        assert tuple(batch.window[index]) == (0, 0, height, width)
    assert not batch.window[2].any()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: truncate(file), "Cannot read .*f.jpg"),
        (lambda file: file.unlink(), "Cannot read .*f.jpg"),
        (lambda file: Image.new("RGB", (5, 5)).save(file), "f.jpg changed its size"),
    ],
)
def test_an_unlabelled_image_that_breaks_later_is_named_by_the_stream(root, damage, message):
    data = load_folder(root)
    damage(root / "images" / "f.jpg")
    with pytest.raises(UserError, match=message) as raised:
        list(islice(unlabeled_stream(data.unlabeled, batch_size=4, seed=0, start_step=0, augment=CROP), 3))
    assert "\n" not in str(raised.value)


def test_unlabelled_images_are_checked_by_their_header_only(root):
    truncate(root / "images" / "f.jpg")
    assert load_folder(root).unlabeled.ids[-1] == "f"


WRONG = {
    "no images": (lambda r: shutil.rmtree(r / "images"), "Folder {root}/images does not exist"),
    "no masks": (lambda r: shutil.rmtree(r / "masks"), "Folder {root}/masks does not exist"),
    "no list": (lambda r: (r / "val.txt").unlink(), "List file {root}/val.txt does not exist"),
    "empty list": (lambda r: (r / "train.txt").write_text("\n \n"), "List file {root}/train.txt is empty"),
    "binary list": (lambda r: (r / "train.txt").write_bytes(b"\xff\xfe\x81"), "Cannot read {root}/train.txt as UTF-8"),
    "no image": (lambda r: append(r / "train.txt", "gone"), "'gone' in {root}/train.txt has no image"),
    "two images": (
        lambda r: shutil.copy(r / "images" / "a.png", r / "images" / "b.png"),
        "'b' in {root}/labeled.txt fits b.jpg and b.png",
    ),
    "unsupported extension": (
        lambda r: (r / "images" / "a.png").rename(r / "images" / "a.tiff"),
        "{root}/images/a.tiff .* unsupported extension",
    ),
    "unsupported format": (
        lambda r: save(pixels("a"), r / "images" / "a.png", format="BMP"),
        "{root}/images/a.png is a BMP file",
    ),
    "16-bit image": (
        lambda r: save(np.full(SIZES["e"], 900, np.uint16), r / "images" / "e.png"),
        "{root}/images/e.png has 16 bits per channel",
    ),
    "no labelled mask": (
        lambda r: (r / "masks" / "a.png").unlink(),
        "Mask {root}/masks/a.png of 'a' in {root}/labeled.txt does not exist",
    ),
    "no validation mask": (
        lambda r: (r / "masks" / "d.png").unlink(),
        "Mask {root}/masks/d.png of 'd' in {root}/val.txt does not exist",
    ),
    "different sizes": (
        lambda r: save(ids("c"), r / "masks" / "a.png"),
        "{root}/masks/a.png is 25x25 .* {root}/images/a.png is 20x30",
    ),
    "id out of range": (
        lambda r: save(np.full(SIZES["d"], 4, np.uint8), r / "masks" / "d.png"),
        "{root}/masks/d.png holds the id 4, but classes.txt names 4 classes",
    ),
    "RGB mask": (
        lambda r: save(pixels("a"), r / "masks" / "a.png"),
        "{root}/masks/a.png is a 8-bit PNG of mode RGB.*convert it to an 8-bit index PNG",
    ),
    "16-bit mask": (
        lambda r: save(np.zeros(SIZES["a"], np.uint16), r / "masks" / "a.png"),
        "{root}/masks/a.png is a 16-bit PNG of mode I",
    ),
    "JPEG mask": (
        lambda r: save(ids("a"), r / "masks" / "a.png", format="JPEG"),
        "{root}/masks/a.png is a JPEG file.*index PNG",
    ),
    "duplicate": (
        lambda r: append(r / "train.txt", "a"),
        r"'a' is twice in {root}/train.txt \(lines 1 and 5\)",
    ),
    "duplicate by another path": (
        lambda r: append(r / "train.txt", "./a.png"),
        r"'a' is twice in {root}/train.txt \(lines 1 and 5\)",
    ),
    "validation by another path": (
        lambda r: append(r / "val.txt", "./a"),
        "'a' is in both {root}/labeled.txt and {root}/val.txt",
    ),
    "not below images": (
        lambda r: append(r / "train.txt", "../masks/a.png"),
        r"'../masks/a.png' in {root}/train.txt \(line 5\) is not below images/",
    ),
    "labelled in validation": (
        lambda r: append(r / "val.txt", "a"),
        "'a' is in both {root}/labeled.txt and {root}/val.txt",
    ),
    "unlabelled in validation": (
        lambda r: (append(r / "val.txt", "e"), shutil.copy(r / "masks" / "c.png", r / "masks" / "e.png")),
        "'e' is in both {root}/train.txt and {root}/val.txt",
    ),
    "truncated labelled JPEG": (lambda r: truncate(r / "images" / "b.jpg"), "Cannot read {root}/images/b.jpg"),
    "truncated validation PNG": (lambda r: truncate(r / "images" / "c.png"), "Cannot read {root}/images/c.png"),
    "truncated mask": (lambda r: truncate(r / "masks" / "c.png"), "Cannot read {root}/masks/c.png"),
    "empty unlabelled image": (
        lambda r: (r / "images" / "f.jpg").write_bytes(b""),
        "Cannot read {root}/images/f.jpg .*replace the file",
    ),
    "empty classes": (lambda r: (r / "classes.txt").write_text("\n"), "Class file {root}/classes.txt is empty"),
    "a class twice": (
        lambda r: (r / "classes.txt").write_text("background\ncat\ndog\ncat\n"),
        "Class file {root}/classes.txt names 'cat' twice",
    ),
    "one class": (lambda r: (r / "classes.txt").write_text("cat"), "holds the id 3, but classes.txt names 1 classes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_ends_in_one_sentence_with_the_file(root, name):
    damage, message = WRONG[name]
    load_folder(root)
    damage(root)
    with pytest.raises(UserError, match=message.replace("{root}", re.escape(str(root)))) as raised:
        load_folder(root)
    assert "\n" not in str(raised.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_folder(tmp_path / "nowhere")


def test_the_ignore_id_must_not_be_a_class(root):
    with pytest.raises(UserError, match="ignore id 2 is also class 'dog'"):
        load_folder(root, ignore_id=2)


def test_nor_an_id_below_the_largest_where_classes_have_no_names(root):
    (root / "classes.txt").unlink()
    with pytest.raises(UserError, match="ignore id 2 is among them: renumber"):
        load_folder(root, ignore_id=2)


def test_masks_without_classes_are_refused(root):
    (root / "classes.txt").unlink()
    for stem in "abcd":
        save(np.full(SIZES[stem], 255, np.uint8), root / "masks" / f"{stem}.png")
    with pytest.raises(UserError, match="fewer than 2 classes"):
        load_folder(root)


def test_voc_palette_has_256_distinct_colours():
    palette = voc_palette()
    assert len({tuple(colour) for colour in palette}) == 256
    assert tuple(palette[15]) == (192, 128, 128)
    assert tuple(palette[255]) == (224, 224, 192)
