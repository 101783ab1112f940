"""`pc2seg_jax.load`: a model from Python, of a run or an export."""

import numpy as np
import pytest
from PIL import Image

import pc2seg_jax
from pc2seg_jax import prediction, restoring
from pc2seg_jax.errors import UserError


@pytest.fixture(scope="module")
def model(tiny_run):
    return pc2seg_jax.load(tiny_run.workdir)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)


def test_a_run_predicts_as_the_command_does(tiny_run, model, image):
    run = restoring.restore(tiny_run.workdir, "latest")
    expected = prediction.make_predictor(run)(image)
    np.testing.assert_array_equal(model.probabilities(image), expected)
    mask = model.predict(image)
    np.testing.assert_array_equal(mask, expected.argmax(-1))
    assert mask.dtype == np.uint8
    assert model.class_names == run.info.class_names
    assert model.palette.shape == (256, 3)
    assert model.step == 6


def test_the_teacher_is_another_network(tiny_run, model, image):
    teacher = pc2seg_jax.load(tiny_run.workdir, step=6, network="teacher")
    assert np.abs(teacher.probabilities(image) - model.probabilities(image)).max() > 0


def test_images_are_paths_pillow_images_arrays_or_several(model, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = model.predict(image)
    grey = image[..., 0]
    several = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image), image, grey]
    masks = model.predict(several)
    assert len(masks) == 5
    for mask in masks[:4]:
        np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(masks[4], model.predict(np.stack([grey] * 3, -1)))
    batch = model.predict(np.stack([image, image]))
    assert len(batch) == 2
    np.testing.assert_array_equal(batch[1], expected)


def test_large_images_are_seen_at_max_side(model, image):
    seen = []

    def forward(pixels):
        seen.append(pixels.shape)
        return np.broadcast_to(np.float32([0.2, 0.8]), (*pixels.shape[:2], 2))

    mask = model._replace(max_side=20, forward=forward).predict(image)
    assert seen == [(13, 20, 3)]
    assert mask.shape == (40, 61)
    assert (mask == 1).all()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((4, 4, 3)), "uint8 of shape .* not float64"),
        (np.zeros((4, 4, 4), np.uint8), r"not uint8 \(4, 4, 4\)"),
        ("nowhere.jpg", "nowhere.jpg is not a file"),
        ([np.zeros(3, np.uint8)], r"\(3,\)"),
    ],
    ids=str,
)
def test_other_things_are_refused(model, images, words):
    with pytest.raises(UserError, match=words):
        model.predict(images)


def test_a_folder_of_something_else_is_named(tmp_path, tiny_run):
    with pytest.raises(UserError, match=r"neither the folder of a run .* nor of an export"):
        pc2seg_jax.load(tmp_path)
    with pytest.raises(UserError, match="network='old'"):
        pc2seg_jax.load(tiny_run.workdir, network="old")
    with pytest.raises(UserError, match="--step=7"):
        pc2seg_jax.load(tiny_run.workdir, step=7)


def test_an_export_is_loaded_the_same_way(tiny_run, image, tmp_path):
    from pc2seg_jax import exporting

    run = restoring.restore(tiny_run.workdir, "latest")
    exporting.export_run(run, tmp_path / "exported", which="student", formats=["stablehlo"], weights="inside")
    model = pc2seg_jax.load(tmp_path / "exported")
    assert (model.class_names, model.step, model.max_side) == (run.info.class_names, 6, 0)
    np.testing.assert_array_equal(model.palette, run.info.palette)
    assert model.probabilities(image).shape == (40, 61, 7)
    with pytest.raises(UserError, match="is an export, which holds one network"):
        pc2seg_jax.load(tmp_path / "exported", network="teacher")
    np.testing.assert_array_equal(model.predict(image), model.probabilities(image).argmax(-1))
