"""Masks for a folder of images: their sizes, ids and colours, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from pc2seg_jax import prediction, restoring
from pc2seg_jax.data.folder import voc_palette
from pc2seg_jax.data.shapes import load_shapes
from pc2seg_jax.errors import UserError

SIZES = {"square": (97, 97), "wide": (40, 97), "small": (1, 7), "large": (60, 120)}


@pytest.fixture(scope="module")
def run(tiny_run, make_parts):
    return restoring.restore(tiny_run.workdir, "latest", make_parts(tiny_run.config).shardings)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Validation image 0, and noise of other sizes, in the formats and modes that people have."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    source = load_shapes(num_labeled=1, num_unlabeled=1, num_val=1).val
    for name, size in SIZES.items():
        pixels = source.read_image(0) if name == "square" else rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        if name == "small":
            image = image.convert("L")
        image.save(folder / (f"{name}.PNG" if name != "wide" else f"{name}.jpeg"))
    (folder / "notes.txt").write_text("not an image, and not taken for one")
    return folder


@pytest.fixture(scope="module")
def output(run, images, tmp_path_factory):
    output = tmp_path_factory.mktemp("output") / "new"
    written = list(prediction.predict_folder(run, images, output))
    assert written == [output / "masks" / f"{name}.png" for name in sorted(SIZES)]
    return output


def read(path):
    with Image.open(path) as image:
        return image.mode, np.asarray(image), image.getpalette()


def test_every_mask_is_a_palette_png_of_class_ids_in_the_size_of_its_image(output):
    for name, size in SIZES.items():
        mode, ids, palette = read(output / "masks" / f"{name}.png")
        assert mode == "P"
        assert ids.shape == size
        assert ids.dtype == np.uint8
        assert ids.max() < 7
        np.testing.assert_array_equal(np.reshape(palette, (-1, 3))[:7], voc_palette()[:7])
        with Image.open(output / "overlays" / f"{name}.jpg") as overlay:
            assert overlay.size == size[::-1]


def test_the_mask_is_the_most_probable_class_of_every_pixel(run, output, images):
    probabilities = prediction.make_predictor(run)(prediction.read_image(images / "square.PNG", 0)[0])
    assert probabilities.shape == (97, 97, 7)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(read(output / "masks" / "square.png")[1], probabilities.argmax(-1))


def test_padding_does_not_change_what_is_predicted_where_it_is_the_same(run):
    """97 x 97 is the evaluation size: the same canvas, whether the pipeline or the predictor padded it."""
    image = np.random.default_rng(1).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    canvas = np.full((97, 97, 3), 127.5, np.float32)
    canvas[:50, :60] = image
    predict = prediction.make_predictor(run)
    np.testing.assert_array_equal(predict(image), predict(canvas)[:50, :60])


def test_large_images_are_predicted_at_max_side_and_their_masks_enlarged(run, images, tmp_path, monkeypatch):
    config = run.config.copy_and_resolve_references()
    config.data.max_side = 48
    seen = []

    def make_predictor(run):
        def predict(image):
            seen.append(image.shape)
            rows = np.arange(image.shape[0]) * 2 // image.shape[0]  # upper half class 0, lower half class 1
            return np.broadcast_to(np.eye(7, dtype=np.float32)[rows][:, None], (*image.shape[:2], 7))

        return predict

    monkeypatch.setattr(prediction, "make_predictor", make_predictor)
    assert len(list(prediction.predict_folder(run._replace(config=config), images, tmp_path))) == len(SIZES)
    assert dict(zip(sorted(SIZES), seen, strict=True)) == {
        "large": (24, 48, 3),
        "small": (1, 7, 3),
        "square": (48, 48, 3),
        "wide": (20, 48, 3),
    }
    for name in ("large", "wide"):
        ids, (height, width) = read(tmp_path / "masks" / f"{name}.png")[1], SIZES[name]
        np.testing.assert_array_equal(ids, np.repeat([[0], [1]], height // 2, 0).repeat(width, 1))


def test_an_extremely_narrow_image_keeps_a_pixel(tmp_path):
    Image.new("RGB", (1000, 1)).save(tmp_path / "line.png")
    image, original = prediction.read_image(tmp_path / "line.png", 100)
    assert image.shape == (1, 100, 3)
    assert original == (1, 1000)


def test_masks_that_exist_are_kept_unless_told_otherwise(run, images, output, tmp_path):
    mask = output / "masks" / "square.png"
    before = mask.read_bytes()
    with pytest.raises(UserError, match=r"large.png exists already: .*--overwrite"):
        next(prediction.predict_folder(run, images, output))
    for path in (output / "masks").iterdir():
        path.write_bytes(b"changed")
    assert len(list(prediction.predict_folder(run, images, output, overwrite=True))) == len(SIZES)
    assert mask.read_bytes() == before


def test_a_file_that_is_no_image_is_named(run, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 this is not a photo")
    with pytest.raises(UserError, match=r"broken\.jpg cannot be decoded"):
        next(prediction.predict_folder(run, tmp_path, tmp_path / "output"))


def test_unusable_folders_are_named(run, images, tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        next(prediction.predict_folder(run, tmp_path / "nowhere", tmp_path))
    with pytest.raises(UserError, match="holds no image"):
        next(prediction.predict_folder(run, tmp_path, tmp_path / "output"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file is not a folder: name another --output"):
        next(prediction.predict_folder(run, images, tmp_path / "file"))
    for suffix in ("png", "jpg"):
        Image.new("RGB", (5, 5)).save(tmp_path / f"twin.{suffix}")
    with pytest.raises(UserError, match="same mask"):
        next(prediction.predict_folder(run, tmp_path, tmp_path / "output"))
    assert not (tmp_path / "output").exists()
