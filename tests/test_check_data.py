"""What check_data reports, warns of and draws, against what is in the files."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from pc2seg_jax import build, contact_sheet, data_report, training
from pc2seg_jax.data.folder import load_folder, voc_palette
from pc2seg_jax.data.sources import Dataset, array_source
from pc2seg_jax.errors import UserError
from pc2seg_jax.ops.views import make_views

ROOT = pathlib.Path(__file__).parent.parent
CROP = (33, 33)


def dataset(masks, *, val=None, names=("sky", "tree", "car"), ignore_id=255, grey=False, size=(40, 40)):
    """Images of noise; masks are lists of the ids that an image shows, in equal stripes."""
    rng = np.random.default_rng(0)

    def source(shown, name):
        images = rng.integers(0, 256, (len(shown), *size, 3), dtype=np.uint8)
        if grey:
            images[:] = images[..., :1]
        stripes = np.stack([np.resize(np.repeat(ids, size[1] // len(ids)), size) for ids in shown]).astype(np.uint8)
        return array_source(images, stripes, [f"{name}_{i}" for i in range(len(shown))], name)

    labeled, val = source(masks, "labeled"), source(val or masks, "val")
    unlabeled = labeled._replace(read_mask=None)
    return Dataset(names, voc_palette(), labeled, unlabeled, val, ignore_id)


def look(data, limit=0):
    return [data_report.look_into(getattr(data, role), role, limit) for role in data_report.ROLES]


def test_counts_are_those_of_the_masks():
    data = dataset([[0, 1], [0, 2], [0, 0], [1, 255]])
    labeled, unlabeled, val = look(data)
    assert (labeled.read, unlabeled.read, val.read) == (4, 4, 4)
    assert unlabeled.pixels is None
    for id_, pixels, images in ((0, 800 + 800 + 1600, 3), (1, 800 + 800, 2), (2, 800, 1), (255, 800, 1), (3, 0, 0)):
        assert (labeled.pixels[id_], labeled.showing[id_]) == (pixels, images)
    table = data_report.class_table((labeled, unlabeled, val), data).splitlines()
    assert [line.split()[:4] for line in table[1:]] == [
        ["0", "sky", "50.00%", "3"],
        ["1", "tree", "25.00%", "2"],
        ["2", "car", "12.50%", "1"],
        ["255", "ignored", "12.50%", "1"],
    ]


def test_a_limit_opens_images_spread_over_the_whole_list():
    data, opened = dataset([[0, 1]] * 9), []
    source = data.unlabeled._replace(read_image=lambda i: (opened.append(i), data.unlabeled.read_image(i))[1])
    assert data_report.look_into(source, "unlabeled", 3).read == 3
    assert opened == [0, 4, 8]


GOOD = [[0, 1, 2, 255], [0, 1, 2, 2], [2, 0, 1, 1]]


def test_good_data_raises_no_warning():
    data = dataset(GOOD)
    assert data_report.warnings(look(data), data, CROP) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (dataset([[0, 255]], names=("sky", "tree")), ["labeled", "only 0 and 255", "write 1 instead of 255"]),
        (dataset([*GOOD, [255], [255], [255]]), ["labeled", "of the pixels have the ignore id 255"]),
        (dataset([[1]], val=GOOD), ["labeled: the masks hold one class only, 'tree'"]),
        (dataset([[0, 1]], val=GOOD), ["in no labelled mask", "2 car"]),
        (dataset([[0, 1]]), ["in no mask at all: 2 car"]),
        (dataset([[0, 30, 70, 99]], names=tuple(f"class_{i}" for i in range(100))), ["up to 99", "grey levels"]),
        (dataset(GOOD, size=(120, 120)), ["13 times as large as the crop", "--config.data.max_side=66"]),
        (dataset(GOOD, grey=True), ["no image has colours"]),
    ],
    ids=["binary", "ignored", "one class", "not learnt", "nowhere", "grey levels", "large", "grey"],
)
def test_each_warning_is_raised_by_its_case(data, words):
    found = data_report.warnings(look(data), data, CROP)
    assert any(all(word in sentence for word in words) for sentence in found), found
    assert not any("\n" in sentence for sentence in found)


def test_the_sheet_shows_the_pixels_of_the_first_batch(tmp_path, tiny_config):
    config = tiny_config(data__unlabeled_masks=True)
    data = build.build_dataset(config)
    contact_sheet.write_sheet(config, data, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    crops = next(training.training_batches(config, data, 0))
    views = jax.device_get(make_views(crops, mean_pixel=build.mean_pixel(config), ignore_id=data.ignore_id))

    def panel(column, row):
        top = contact_sheet.TEXT + contact_sheet.GAP + row * (33 + contact_sheet.GAP)
        left = contact_sheet.GAP + column * (33 + contact_sheet.GAP)
        return sheet[top : top + 33, left : left + 33]

    for row in range(contact_sheet.ROWS):
        np.testing.assert_array_equal(panel(0, row), views.labeled.image[row].round())
        np.testing.assert_array_equal(panel(2, row), views.unlabeled.weak[row].round())
        np.testing.assert_array_equal(panel(3, row), views.unlabeled.strong[row].round())
        valid = views.unlabeled.valid[row]
        np.testing.assert_array_equal(panel(4, row)[valid], views.unlabeled.weak[row].round()[valid])
        assert (panel(4, row)[~valid] < 70).all()
        for column, image, label in (
            (1, views.labeled.image, views.labeled.label),
            (5, views.unlabeled.weak, views.unlabeled.label),
        ):
            known = label[row] != data.ignore_id
            expected = image[row] / 2 + data.palette[np.where(known, label[row], 0)] / 2
            assert np.abs(panel(column, row) - expected)[known].max() <= 0.5
    assert not views.unlabeled.valid[: contact_sheet.ROWS].all()


def test_names_of_classes_stand_whole_and_apart_in_the_legend():
    def legend(name):
        entries = [(name, (255, 0, 0)), ("next", (0, 0, 255))]
        sheet = np.asarray(contact_sheet.draw_sheet([("view", [np.zeros((8, 600, 3), np.uint8)])], entries))
        return sheet[contact_sheet.TEXT + 3 * contact_sheet.GAP + 8 :]

    one, other = (legend(f"3 Unterwasserfahrzeug_{end}") for end in ("one", "two"))
    assert not np.array_equal(one, other)
    swatch = np.argwhere((one == (0, 0, 255)).all(-1)).min(0)
    assert (one[:, swatch[1] - contact_sheet.GAP : swatch[1] - 1] == contact_sheet.BACKGROUND).all()


def test_the_output_is_checked_before_anything_is_read(tmp_path):
    (tmp_path / "there.png").write_bytes(b"mine")
    for name, words in (("x.jpg", "ends in .png"), ("no/x.png", "does not exist"), ("there.png", "--overwrite")):
        with pytest.raises(UserError, match=words):
            contact_sheet.check_output(tmp_path / name, overwrite=False)
    contact_sheet.check_output(tmp_path / "there.png", overwrite=True)


def test_speed_says_how_many_hosts_a_device_needs():
    rates = {"labelled": 200.0, "labelled and unlabelled together": 100.0}
    assert "enough for 90 images/s on 1 host" in data_report.speed_text(rates, 90)
    assert "450 images/s are 4.5 times what 1 such host can deliver: use 5 hosts" in data_report.speed_text(rates, 450)
    assert len(data_report.speed_text(rates, 0).splitlines()) == 2


def test_rates_are_positive(tiny_config):
    config = tiny_config()
    rates = data_report.measure_rates(config, build.build_dataset(config), 0.05)
    assert list(rates) == ["labelled", "labelled and unlabelled together"]
    assert min(rates.values()) > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "mine"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    data = dataset(GOOD, size=(30, 44))
    for i in range(3):
        Image.fromarray(data.labeled.read_image(i)).save(root / "images" / f"{i}.png")
        Image.fromarray(data.labeled.read_mask(i)).save(root / "masks" / f"{i}.png")
    for name, ids in (("labeled", "0"), ("train", "01"), ("val", "2")):
        (root / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))
    return root


def check_data(*flags):
    command = [sys.executable, "-m", "pc2seg_jax.check_data", "--config=configs/folder.py:small", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_command(folder, tmp_path):
    load_folder(folder)
    done = check_data(f"--config.data.root={folder}", f"--output={tmp_path}/sheet.png", "--seconds=0.1")
    assert done.returncode == 0, done.stderr
    for words in (
        "labeled: 1 images (mine/labeled.txt, sha256 ",
        "30x44",
        "class_2",
        "nothing looks wrong",
        "images/s on",
    ):
        assert words in done.stdout
    assert Image.open(tmp_path / "sheet.png").format == "PNG"
    assert check_data(f"--config.data.root={folder}", f"--output={tmp_path}/sheet.png").returncode == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: Image.new("RGB", (44, 30)).save(root / "masks" / "0.png"), ["0.png", "no colours"]),
        (lambda root: Image.new("L", (43, 30)).save(root / "masks" / "0.png"), ["0.png", "make the sizes equal"]),
        (lambda root: (root / "classes.txt").write_text("a\nb\n"), ["holds the id 2", "classes.txt"]),
    ],
)
def test_what_the_loader_refuses_ends_in_one_line(folder, tmp_path, damage, words):
    root = tmp_path / "copy"
    subprocess.run(["cp", "-r", folder, root], check=True)
    damage(root)
    done = check_data(f"--config.data.root={root}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr
