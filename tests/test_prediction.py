"""Masks for images of any kind: their sizes, ids and colours, what is left out, and what is refused."""

import cv2
import numpy as np
import pytest
from PIL import Image

from pc2seg_jax import mask_files, prediction, restoring
from pc2seg_jax.data import photos
from pc2seg_jax.data.folder import voc_palette
from pc2seg_jax.data.shapes import load_shapes
from pc2seg_jax.errors import UserError
from pc2seg_jax.inference import InferenceViews

SIZES = {"square": (97, 97), "wide": (40, 97), "small": (1, 7), "large": (60, 120), "drehung_ä": (50, 30)}


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
        exif = Image.Exif()
        if name.startswith("drehung"):
            image = image.transpose(Image.Transpose.ROTATE_90)  # stored lying, to be turned clockwise
            exif[0x0112] = 6
        image.save(folder / (f"{name}.PNG" if name != "wide" else f"{name}.jpeg"), exif=exif)
    (folder / "notes.txt").write_text("not an image, and not taken for one")
    return folder


def predict(run, patterns, output, **options):
    count, problems, written = mask_files.predict_photos(run, [str(x) for x in patterns], output, **options)
    return count, problems, list(written)


@pytest.fixture(scope="module")
def output(run, images, tmp_path_factory):
    output = tmp_path_factory.mktemp("output") / "new"
    count, problems, written = predict(run, [images], output, with_probabilities=True)
    assert (count, problems) == (len(SIZES), {})
    assert sorted(written) == sorted(output / "masks" / f"{name}.png" for name in SIZES)
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


def test_the_mask_is_the_most_probable_class_and_confidence_its_probability(run, output, images):
    probabilities = prediction.make_predictor(run)(photos.as_rgb(images / "square.PNG"))
    assert probabilities.shape == (97, 97, 7)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(read(output / "masks" / "square.png")[1], probabilities.argmax(-1))
    mode, confidence, _ = read(output / "confidence" / "square.png")
    assert mode == "L"
    np.testing.assert_allclose(confidence / 255, probabilities.max(-1), atol=0.51 / 255)
    with np.load(output / "probabilities" / "square.npz") as stored:
        np.testing.assert_allclose(stored["probabilities"], probabilities, atol=1e-3)
        assert stored["class_names"].tolist() == list(run.info.class_names)


def test_a_photo_is_seen_as_exif_turns_it(run, output, images):
    upright = photos.as_rgb(images / "drehung_ä.PNG")
    np.testing.assert_array_equal(upright, np.rot90(np.asarray(Image.open(images / "drehung_ä.PNG")), -1))
    expected = prediction.make_predictor(run)(upright).argmax(-1)
    np.testing.assert_array_equal(read(output / "masks" / "drehung_ä.png")[1], expected)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_header_tells_the_size_that_is_read(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (60, 40)).save(tmp_path / f"a.{ending}", exif=exif)
    header = photos.read_header(tmp_path / f"a.{ending}", 0)
    assert header.size == header.read_size == photos.as_rgb(header.path).shape[:2]
    assert header.size == ((60, 40) if orientation == 6 else (40, 60))


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

    def batch(self, images, canvas, rows):
        found = []
        for image in images:
            seen.append(image.shape[:2])
            rows = np.arange(image.shape[0]) * 2 // image.shape[0]  # upper half class 0, lower half class 1
            found.append(np.broadcast_to(np.eye(7, dtype=np.float32)[rows][:, None], (*image.shape[:2], 7)))
        return found

    monkeypatch.setattr(prediction.Predictor, "batch", batch)
    predict(run._replace(config=config), [images], tmp_path)
    assert sorted(seen) == [(1, 7), (20, 48), (24, 48), (48, 29), (48, 48)]
    for name in ("large", "wide"):
        ids, (height, width) = read(tmp_path / "masks" / f"{name}.png")[1], SIZES[name]
        np.testing.assert_array_equal(ids, np.repeat([[0], [1]], height // 2, 0).repeat(width, 1))


def test_enlarging_is_that_of_opencv_and_takes_the_lowest_of_equal_classes():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(5), (7, 9)).astype(np.float32)
    ids, confidence = photos.most_probable(probabilities, (31, 20))
    large = cv2.resize(probabilities, (20, 31), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(ids, large.argmax(-1))
    np.testing.assert_allclose(confidence, large.max(-1), rtol=1e-6)
    assert photos.most_probable(np.full((2, 2, 3), 1 / 3, np.float32), (2, 2))[0].max() == 0


def test_many_sizes_need_few_canvases(run):
    """A canvas is what is compiled: 300 photos of different sizes, lying and upright, share a few."""
    predictor = prediction.Predictor(run)
    rng = np.random.default_rng(0)
    sizes = [(int(side), int(side * rng.choice([3 / 4, 2 / 3, 4 / 3]))) for side in rng.integers(300, 1_300, 300)]
    canvases = {predictor.canvas(size) for size in sizes}
    assert len(set(sizes)) > 250
    assert len(canvases) < 50
    sizes += [(1, 1), (1, 500), (97, 98)]
    canvases |= {predictor.canvas(size) for size in sizes}
    for size in sizes:
        canvas = predictor.canvas(size)
        assert all(side % 16 == 1 for side in canvas)
        assert all(shown >= side for shown, side in zip(canvas, size, strict=True))
        assert all(shown <= max(97, 1.25 * side + 16) for shown, side in zip(canvas, size, strict=True))
    plan = prediction.plan_batches(sizes, predictor, 8)
    assert sorted(index for members, _ in plan for index in members) == list(range(303))
    compiled = {(predictor.canvas(sizes[members[0]]), rows) for members, rows in plan}
    assert len(compiled) <= 2 * len(canvases)
    for members, rows in plan:
        assert len(members) <= rows <= 8
        assert len({predictor.canvas(sizes[i]) for i in members}) == 1


def test_a_batch_of_several_images_gives_each_its_own_probabilities(run):
    rng = np.random.default_rng(2)
    predictor = prediction.Predictor(run)
    several = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((97, 97), (30, 50), (97, 1))]
    found = predictor.batch(several, (97, 97), 4)
    for image, probabilities in zip(several, found, strict=True):
        np.testing.assert_allclose(probabilities, predictor(image), atol=1e-5)


def test_huge_images_are_looked_at_by_windows(run):
    predictor = prediction.Predictor(run)
    assert predictor.canvas((4000, 6000)) == (prediction.WINDOW, prediction.WINDOW)
    assert predictor.needs_windows((4000, 6000))
    assert not predictor.needs_windows((1024, 2048)), "Cityscapes is evaluated as a whole"
    assert prediction.Predictor(run, InferenceViews(window=33)).canvas((40, 97)) == (33, 33)
    assert prediction.Predictor(run, InferenceViews(window=113)).canvas((20, 400)) == (97, 113)


def test_a_photo_of_24_megapixels_is_put_together_from_windows(run, tmp_path, monkeypatch):
    pixels = np.zeros((4000, 6000, 3), np.uint8)
    pixels[1500:2300, 2000:4100] = 255
    Image.fromarray(pixels).save(tmp_path / "huge.png", compress_level=1)
    shown = []

    def batch(self, images, canvas, rows):
        shown.append(canvas)
        return [np.stack([image[..., 0] == 0, image[..., 0] > 0], -1).astype(np.float32) for image in images]

    monkeypatch.setattr(prediction.Predictor, "batch", batch)
    predict(run, [tmp_path / "huge.png"], tmp_path / "output")
    assert set(shown) == {(1025, 1025)}
    assert len(shown) == 6 * 9
    np.testing.assert_array_equal(read(tmp_path / "output" / "masks" / "huge.png")[1], pixels[..., 0] > 0)


def test_an_extremely_narrow_image_keeps_a_pixel(tmp_path):
    Image.new("RGB", (1000, 1)).save(tmp_path / "line.png")
    header = photos.read_header(tmp_path / "line.png", 100)
    assert header == (tmp_path / "line.png", (1, 1000), (1, 100))
    assert photos.shrink(photos.as_rgb(header.path), header.read_size).shape == (1, 100, 3)


def test_every_kind_of_pixel_becomes_rgb(tmp_path):
    ramp = np.linspace(0, 65535, 12).reshape(3, 4)
    expected = np.repeat((ramp / 257).round().astype(np.uint8)[..., None], 3, -1)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(photos.as_rgb(tmp_path / "deep.png"), expected)
    Image.new("RGBA", (2, 2), (200, 100, 50, 0)).save(tmp_path / "clear.png")
    assert photos.as_rgb(tmp_path / "clear.png").max() == 0
    Image.new("LA", (2, 2), (200, 255)).save(tmp_path / "grey.png")
    assert (photos.as_rgb(tmp_path / "grey.png") == 200).all()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    assert photos.as_rgb(tmp_path / "print.jpg")[4, 4, 0] > 200 > 60 > photos.as_rgb(tmp_path / "print.jpg")[4, 4, 1]
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.save(tmp_path / "indexed.png")
    assert photos.as_rgb(tmp_path / "indexed.png")[0, 0].tolist() == [9, 8, 7]


def test_masks_that_exist_are_kept_unless_told_otherwise(run, images, output, tmp_path):
    mask = output / "masks" / "square.png"
    before = mask.read_bytes()
    with pytest.raises(UserError, match=r"exists already: .*--overwrite"):
        predict(run, [images / "square.PNG"], output)
    mask.write_bytes(b"changed")
    assert predict(run, [images / "square.PNG"], output, overwrite=True)[2] == [mask]
    assert mask.read_bytes() == before


def test_files_that_are_no_images_are_left_out_and_named(run, images, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    Image.open(images / "wide.jpeg").save(folder / "good.jpg")
    whole = (images / "wide.jpeg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.jpg").write_bytes(b"")
    count, problems, written = predict(run, [folder], tmp_path / "output")
    assert count == 4
    assert [path.name for path in written] == ["good.png"]
    assert {path.name for path in problems} == {"cut.jpg", "text.png", "empty.jpg"}
    assert problems[folder / "cut.jpg"].startswith(f"{folder / 'cut.jpg'} cannot be decoded (")
    for name in ("text.png", "empty.jpg"):
        assert problems[folder / name] == f"{folder / name} is not an image of a kind that can be read"
    assert [path.name for path in (tmp_path / "output" / "masks").iterdir()] == ["good.png"]


def test_files_folders_and_patterns_name_images(images, tmp_path):
    every = sorted(path for path in images.iterdir() if path.suffix != ".txt")
    assert photos.find_photos([str(images)]) == every
    assert photos.find_photos([str(images / "*.PNG")]) == [path for path in every if path.suffix == ".PNG"]
    assert photos.find_photos([str(images / "square.PNG"), str(images)]) == every, "an image counts once"


def test_unusable_inputs_are_named(run, images, tmp_path):
    with pytest.raises(UserError, match="nowhere is neither a file nor a folder"):
        predict(run, [tmp_path / "nowhere"], tmp_path / "output")
    with pytest.raises(UserError, match="holds no image"):
        predict(run, [tmp_path], tmp_path / "output")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file is not a folder: name another --output"):
        predict(run, [images], tmp_path / "file")
    for suffix in ("png", "jpg"):
        Image.new("RGB", (5, 5)).save(tmp_path / f"twin.{suffix}")
    with pytest.raises(UserError, match="same mask"):
        predict(run, [tmp_path], tmp_path / "output")
    assert not (tmp_path / "output").exists()
