"""The exported folder is the embedded dataset, file by file."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pc2seg_jax.data.folder import load_folder
from pc2seg_jax.data.folder_writer import write_folder
from pc2seg_jax.data.shapes import load_shapes
from pc2seg_jax.errors import UserError


@pytest.fixture(scope="module")
def shapes():
    return load_shapes(num_labeled=2, num_unlabeled=4, num_val=3, size=49, seed=5)


@pytest.fixture(scope="module")
def root(shapes, tmp_path_factory):
    root = tmp_path_factory.mktemp("export") / "a" / "shapes"
    write_folder(shapes, root)
    return root


def test_folder_gives_the_same_ids_pixels_and_classes(shapes, root):
    folder = load_folder(root)
    assert folder.class_names == shapes.class_names
    assert folder.ignore_id == shapes.ignore_id
    np.testing.assert_array_equal(folder.palette, shapes.palette)
    for name in ("labeled", "unlabeled", "val"):
        ours, theirs = getattr(folder, name), getattr(shapes, name)
        assert ours.ids == theirs.ids
        for i in range(len(ours.ids)):
            np.testing.assert_array_equal(ours.read_image(i), theirs.read_image(i))
            if name != "unlabeled":
                np.testing.assert_array_equal(ours.read_mask(i), theirs.read_mask(i))


def test_only_labelled_and_val_masks_are_written_as_palette_files(shapes, root):
    masks = sorted(path.stem for path in (root / "masks").iterdir())
    assert masks == sorted(shapes.labeled.ids + shapes.val.ids)
    assert len(list((root / "images").iterdir())) == 4 + 3
    for path in (root / "masks").iterdir():
        with Image.open(path) as mask:
            assert mask.mode == "P"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_exists_is_never_mixed_with_an_export(shapes, tmp_path, kind):
    target = tmp_path if kind == "folder" else tmp_path / "thesis.txt"
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=rf"\A{re.escape(str(target))} exists and is not an empty folder[^\n]*\Z"):
        write_folder(shapes, target)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_an_empty_folder_is_filled(shapes, tmp_path):
    write_folder(shapes, tmp_path)
    assert load_folder(tmp_path).val.ids == shapes.val.ids


def test_the_command_writes_the_folder_and_refuses_what_does_not_fit(tmp_path):
    command = [sys.executable, "-m", "pc2seg_jax.export_shapes", f"--output={tmp_path}/new", "--num_labeled=2"]
    done = subprocess.run([*command, "--num_unlabeled=1"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: --num_labeled=2 is more than --num_unlabeled=1: [^\n]*\n", done.stderr)
    assert not list(tmp_path.iterdir())
    subprocess.run([*command, "--num_unlabeled=3", "--num_val=1", "--size=33"], check=True, capture_output=True)
    assert (tmp_path / "new" / "train.txt").read_text() == "train_00000\ntrain_00001\ntrain_00002\n"
    assert load_folder(tmp_path / "new").val.sizes.tolist() == [[33, 33]]
