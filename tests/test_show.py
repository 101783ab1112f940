"""The pictures of what the losses see: weights against loops over pairs, dots only where something can be drawn."""

import numpy as np
import pytest
from PIL import Image
from sentences import assert_one_sentence

from pc2seg_jax import loss_pictures, restoring
from pc2seg_jax.errors import UserError


@pytest.fixture(scope="module")
def run(tiny_run):
    restored = restoring.restore(tiny_run.workdir, "latest")
    restored.config.loss.num_negatives = 5
    return restored


@pytest.fixture(scope="module")
def scene(run):
    return loss_pictures.look(run, batch=1)


def test_a_scene_is_the_first_group_of_the_batch(run, scene):
    assert scene.weak.shape == scene.strong.shape == (run.config.group_size, 33, 33, 3)
    assert scene.predicted.shape == (2, 33, 33)
    assert scene.classes.shape == (2, 3, 3)
    other = loss_pictures.look(run, batch=2)
    assert np.abs(other.weak - scene.weak).max() > 10
    assert set(scene.draws) == {"uniform", "different_image", "pseudo_label", "different_image_pseudo_label"}


def test_the_predictions_are_those_of_the_network_that_the_losses_look_at(run, scene):
    """A run with a teacher looks at the weak view through it."""
    student = loss_pictures.look(run._replace(teacher={}), batch=1)
    assert run.teacher
    assert not np.array_equal(student.draws["pseudo_label"].weights, scene.draws["pseudo_label"].weights)
    alone = loss_pictures.look(run.with_network("teacher")._replace(teacher={}), batch=1)
    np.testing.assert_array_equal(alone.draws["pseudo_label"].weights, scene.draws["pseudo_label"].weights)


def test_weights_are_those_of_the_strategies(scene):
    """Cell by cell, for the anchor; `pseudo_label` from the product of both factors."""
    row, column = scene.anchor
    own = row * 3 + column
    uniform, different, pseudo, both = (
        scene.draws[name].weights.reshape(2, 18)
        for name in ("uniform", "different_image", "pseudo_label", "different_image_pseudo_label")
    )
    valid = np.max([uniform, different], axis=0) > 0
    for view in range(2):
        for cell in range(18):
            if valid[view, cell]:
                assert uniform[view, cell] == (cell != own)
                assert different[view, cell] == (cell >= 9)
                assert both[view, cell] == pseudo[view, cell] * (cell >= 9)
    assert 0 < pseudo.max() <= 1
    assert uniform[:, own].max() == 0


def test_negatives_are_drawn_where_the_weight_is_positive(scene):
    for weights, drawn in scene.draws.values():
        assert not drawn[weights == 0].any()
        assert drawn.sum() == min(5, np.sum(weights > 0)) > 0


def test_shading_darkens_by_weight_and_marks_what_is_drawn():
    image = np.full((5, 5, 3), 200.0)
    weights, drawn = np.zeros((3, 3)), np.zeros((3, 3), bool)
    weights[0, 0], weights[2, 2], drawn[2, 2] = 1, 0.5, True
    panel = loss_pictures.shade(image, weights, drawn, 4)
    assert panel.shape == (20, 20, 3)
    assert (panel[0, 0] == 200).all()
    np.testing.assert_allclose(panel[10, 10], 200 * loss_pictures.DARKEST)
    marked = (panel == loss_pictures.DRAWN).all(-1)
    assert marked[-3:, -3:].all()
    assert marked.sum() == 9


def test_the_table_counts_what_is_drawn(run, scene):
    text = loss_pictures.describe(scene, run.info.class_names)
    assert f"cell {scene.anchor[0]}, {scene.anchor[1]}" in text.splitlines()[0]
    for line in text.splitlines()[2:]:
        strategy, candidates, effective, negatives, _ = line.split()
        weights, drawn = scene.draws[strategy]
        assert int(candidates) == np.sum(weights > 0)
        assert int(negatives) == drawn.sum()
        assert float(effective) == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), abs=0.51)


def test_the_command_writes_a_sheet_and_replaces_it_only_when_told(command, tmp_path, tiny_run):
    output = tmp_path / "sheet.png"
    arguments = [f"--workdir={tiny_run.workdir}", f"--output={output}"]
    status, out, err = command("show", *arguments, "--anchor=3,16")
    assert status == 0, err
    assert "anchor: cell 0, 1 of the first image" in out
    assert Image.open(output).size[0] > 7 * loss_pictures.SMALLEST_PANEL
    assert_one_sentence(command("show", *arguments), output, "--overwrite")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--anchor=99,0"], ["--anchor=99,0 is outside of the crop of 33 x 33"]),
        (["--anchor=4"], ["--anchor=4 is not of the form ROW,COLUMN"]),
        (["--step=77"], ["--step=77 names no checkpoint"]),
        (["--output=sheet.jpg"], ["sheet.jpg", ".png"]),
        (["--workdir=nowhere"], ["nowhere is not the folder of a run"]),
    ],
)
def test_mistakes_are_told_in_one_sentence(command, tmp_path, tiny_run, arguments, words):
    defaults = [f"--workdir={tiny_run.workdir}", f"--output={tmp_path / 'sheet.png'}"]
    assert_one_sentence(command("show", *defaults, *arguments), *words)


def test_an_anchor_must_be_valid_and_a_run_must_have_unlabelled_images(run):
    valid = np.zeros((3, 3), bool)
    with pytest.raises(UserError, match="no valid pixel"):
        loss_pictures._choose_anchor(valid, None, (33, 33))
    with pytest.raises(UserError, match="on padding or under Cutout"):
        loss_pictures._choose_anchor(valid, (0, 0), (33, 33))
    valid[0, 2] = True
    assert loss_pictures._choose_anchor(valid, None, (33, 33)) == (0, 2)
    supervised = run._replace(config=run.config.copy_and_resolve_references())
    supervised.config.objective = "supervised"
    with pytest.raises(UserError, match="it has no unlabelled images to show"):
        loss_pictures.look(supervised)
