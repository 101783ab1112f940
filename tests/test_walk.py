"""A newcomer's walk through the README: a folder of photos and six masks, and only the commands that stand there."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZES = [(90, 120), (120, 90), (75, 75), (64, 130), (100, 133), (133, 100), (80, 60), (97, 97), (110, 70), (60, 61)]
# For a training of seconds instead of minutes; everything else but a measurement's length is as the README says.
SHORT = {
    "steps": 4,
    "eval.every": 4,
    "log_every": 2,
    "batch_labeled": 2,
    "batch_unlabeled": 2,
    "group_size": 2,
    "augment.crop_size": "(65, 65)",
}


def section():
    text = (ROOT / "README.md").read_text()
    return text[text.index("## Your own images") : text.index("## The researcher")]


def code(language):
    return re.findall(rf"```{language}\n(.*?)```", section(), re.DOTALL)


def make_photos(root):
    """Ten photos of different sizes, of ground and a bright box; masks for six of them."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    stems = [f"photo {i}" if i == 3 else f"photo_{i}" for i in range(len(SIZES))]
    for i, (stem, (height, width)) in enumerate(zip(stems, SIZES, strict=True)):
        mask = np.zeros((height, width), np.uint8)
        top, left = rng.integers(5, height // 2), rng.integers(5, width // 2)
        mask[top : top + height // 3, left : left + width // 3] = 1
        image = np.where(mask[..., None] == 1, (220, 60, 40), (40, 120, 60)) + rng.normal(0, 20, (height, width, 3))
        image = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        image.save(root / "images" / f"{stem}.{'jpg' if i % 2 else 'png'}")
        if i < 6:
            Image.fromarray(mask).save(root / "masks" / f"{stem}.png")
    for name, some in {"labeled": stems[:4], "train": stems[:4] + stems[6:], "val": stems[4:6]}.items():
        (root / f"{name}.txt").write_text("\n".join(some) + "\n")
    (root / "classes.txt").write_text("ground\nbox\n")


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """The folder in which every command of the section was run, and what each printed."""
    place = tmp_path_factory.mktemp("walk")
    (place / "configs").symlink_to(ROOT / "configs")
    make_photos(place / "FOLDER")
    (place / "PHOTOS").symlink_to(place / "FOLDER" / "images")
    (place / "IMAGE").symlink_to(place / "FOLDER" / "images" / "photo_1.jpg")
    (place / "photo.jpg").symlink_to(place / "FOLDER" / "images" / "photo_1.jpg")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = []

    def run(arguments):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=place, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout}\n{done.stderr}"
        said.append((arguments, done.stdout))

    for line in "".join(code("bash")).splitlines():
        python, *arguments = shlex.split(line)
        assert python == ".venv/bin/python"
        if "pc2seg_jax.train" in arguments:
            arguments += [f"--config.{key}={value}" for key, value in SHORT.items()]
        if "pc2seg_jax.check_data" in arguments:
            arguments += ["--seconds=0.1"]
        run(arguments)
    [snippet] = code("python")
    run(["-c", snippet + "\nprint(mask.shape, mask.dtype, model.class_names)"])
    return place, said


def test_every_step_of_the_walk_is_there(walk):
    modules = [arguments[1] for arguments, _ in walk[1] if arguments[0] == "-m"]
    assert [name.removeprefix("pc2seg_jax.") for name in modules] == [
        "check_data",
        "train",
        "train",
        "evaluate",
        "report",
        "evaluate",
        "predict",
        "export",
    ]


def test_the_walk_leaves_what_the_readme_promises(walk):
    place, _ = walk
    assert (place / "sheet.png").is_file()
    for run in ("mine", "supervised"):
        result = json.loads((place / "runs" / run / "evaluation" / "4_val.json").read_text())
        assert list(result["iou"]) == ["ground", "box"]
        assert result["split"]["count"] == 2
    page = (place / "report.html").read_text()
    assert "mine" in page
    assert "supervised" in page
    for image in (place / "FOLDER" / "images").iterdir():
        with Image.open(image) as photo:
            size = photo.size
        for kind in ("masks", "confidence"):
            with Image.open(place / "predictions" / kind / f"{image.stem}.png") as written:
                assert written.size == size


def test_the_export_agrees_with_the_checkpoint_and_its_example_runs(walk):
    place, said = walk
    described = json.loads((place / "exported" / "model.json").read_text())
    assert described["class_names"] == ["ground", "box"]
    assert set(described["largest_difference"]) == {"stablehlo", "onnx", "saved_model"}
    assert max(described["largest_difference"].values()) <= 1e-4
    with Image.open(place / "mask.png") as mask:
        assert mask.size == (SIZES[1][1], SIZES[1][0])
        assert mask.mode == "P"
    assert said[-1][1].split("\n")[0] == f"{SIZES[1]} uint8 ('ground', 'box')"
