"""The commands: every mistake ends with exit status 2 and one line on stderr, never in a stack trace.

Most cases run the command inside this process (`command` of conftest.py), because starting Python and its libraries
takes seconds; a few start it the way a user does.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sentences import assert_one_sentence
from weight_files import torch_file, write_torch

from pc2seg_jax import training
from pc2seg_jax import workdir as workdir_lib
from pc2seg_jax.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).parent.parent
SHAPES, FOLDER = ROOT / "configs" / "shapes.py", ROOT / "configs" / "folder.py"
COMMANDS = ("train", "evaluate", "predict", "export", "pretrain", "report", "export_shapes", "convert", "compile_tpu")


@pytest.fixture
def root(tmp_path):
    """A folder dataset: labelled a, b; unlabelled a, b, e; validation c, d. All 20 x 30."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for stem in "abcde":
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(root / "images" / f"{stem}.jpg")
    for stem in "abcd":
        Image.fromarray(rng.integers(0, 3, (20, 30), dtype=np.uint8)).save(root / "masks" / f"{stem}.png")
    for name, stems in {"labeled": "ab", "train": "abe", "val": "cd"}.items():
        (root / f"{name}.txt").write_text("\n".join(stems) + "\n")
    (root / "classes.txt").write_text("one\ntwo\nthree\n")
    return root


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([f"--config={SHAPES}", "--config.stepz=3"], ["stepz"]),
        ([f"--config={SHAPES}", "--config.model.depth=3"], ["depth"]),
        ([f"--config={SHAPES}", "--config.steps=many"], ["steps", "many"]),
        ([f"--config={SHAPES}", "--config.steps=0"], ["config.steps", "positive"]),
        ([f"--config={SHAPES}", "--config.model.backbone=vgg"], ["config.model.backbone", "vgg", "resnet50_beta"]),
        ([f"--config={SHAPES}", "--config.group_size=1"], ["different_image", "config.group_size"]),
        ([f"--config={SHAPES}", "--config.init_from=none.npz"], ["config.init_from", "none.npz"]),
        ([f"--config={SHAPES}:gigantic"], ["gigantic"]),
        (["--config=configs/none.py"], ["configs/none.py"]),
        (["--config=configs/none.py:small", "--config.steps=3"], ["configs/none.py"]),
        ([f"--config={FOLDER}"], ["--config.data.root=FOLDER"]),
        ([f"--config={FOLDER}", "--config.data.root=/no/where"], ["/no/where", "does not exist"]),
        ([f"--config={SHAPES}", "steps=3"], ["steps=3", "--help"]),
        ([f"--config={SHAPES}", "--stepz=3"], ["stepz"]),
        ([], ["--config"]),
    ],
    ids=str,
)
def test_train_refuses_wrong_options(command, tmp_path, arguments, words):
    assert_one_sentence(command("train", f"--workdir={tmp_path / 'run'}", *arguments), *words)
    assert not (tmp_path / "run").exists()


def spoil_mask_size(root):
    Image.new("L", (30, 21)).save(root / "masks" / "b.png")


def spoil_mask_id(root):
    Image.new("L", (30, 20), 7).save(root / "masks" / "c.png")


def spoil_mask_mode(root):
    Image.new("RGB", (30, 20)).save(root / "masks" / "b.png")


def spoil_image(root):
    path = root / "images" / "d.jpg"
    path.write_bytes(path.read_bytes()[:200])


def add_labeled_to_val(root):
    (root / "val.txt").write_text("c\na\n")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / "masks" / "b.png").unlink(), ["b.png", "labeled.txt"]),
        (spoil_mask_size, ["b.png", "21x30", "20x30"]),
        (spoil_mask_id, ["c.png", "7", "classes.txt"]),
        (spoil_mask_mode, ["b.png", "RGB"]),
        (lambda root: (root / "labeled.txt").write_text("\n"), ["labeled.txt", "empty"]),
        (add_labeled_to_val, ["'a'", "labeled.txt", "val.txt"]),
        (spoil_image, ["d.jpg"]),
        (lambda root: (root / "val.txt").unlink(), ["val.txt"]),
        (lambda root: (root / "images" / "e.jpg").unlink(), ["'e'", "train.txt"]),
        (lambda root: shutil.rmtree(root / "images"), ["images"]),
    ],
    ids=["no mask", "size", "id", "colours", "empty list", "overlap", "corrupt", "no list", "no image", "no folder"],
)
def test_train_refuses_a_folder_with_mistakes(command, root, tmp_path, spoil, words):
    spoil(root)
    arguments = [f"--config={FOLDER}:small", f"--config.data.root={root}", f"--workdir={tmp_path / 'run'}"]
    assert_one_sentence(command("train", *arguments), *words)
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_is_answered_with_the_key_that_was_meant(command, tmp_path):
    for key, name, meant in (("stps", "stps", "steps"), ("data.rot", "rot", "root")):
        result = command("train", f"--config={SHAPES}", f"--config.{key}=1", f"--workdir={tmp_path / 'run'}")
        assert_one_sentence(result, f"there is no key '{name}'", f'Did you mean "{meant}"')
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_made_is_named(command, tmp_path):
    (tmp_path / "file").touch()
    tiny = ["train", f"--config={pathlib.Path(__file__).parent / 'tiny_config.py'}:{{}}"]
    assert_one_sentence(command(*tiny, f"--workdir={tmp_path / 'file' / 'run'}"), tmp_path / "file", "Not a directory")
    assert_one_sentence(command(*tiny, "--workdir=s3://bucket/run"), "s3://bucket/run", "gs://BUCKET/PATH")


def test_what_would_be_ignored_or_go_astray_is_refused(command, tmp_path, tiny_run):
    beside = ("export", f"--workdir={tiny_run.workdir}", f"--output={tmp_path / 'out'}", "--weights=beside")
    assert_one_sentence(command(*beside, "--formats=onnx"), "--weights=beside", "stablehlo")
    assert_one_sentence(command("export_shapes", "--output=gs://bucket/x"), "--output=gs://bucket/x", "local disk")
    images = ("predict", f"--workdir={tiny_run.workdir}", f"--output={tmp_path / 'out'}", "--images=")
    assert_one_sentence(command(*images), "--images=", "names nothing")
    assert not (tmp_path / "out").exists()


def test_train_refuses_the_folder_of_another_run(command, tiny_run):
    result = command("train", f"--config={SHAPES}", f"--workdir={tiny_run.workdir}")
    assert_one_sentence(result, tiny_run.workdir, "model.width: 4 -> 16")


def test_commands_refuse_what_is_not_a_run(command, tmp_path):
    for name, *more in (("evaluate",), ("predict", f"--images={tmp_path}", f"--output={tmp_path / 'out'}")):
        assert_one_sentence(command(name, f"--workdir={tmp_path / 'none'}", *more), tmp_path / "none", "config.json")


def test_commands_refuse_checkpoints_that_do_not_exist(command, tiny_run, tiny_config, tmp_path):
    result = command("evaluate", f"--workdir={tiny_run.workdir}", "--step=99")
    assert_one_sentence(result, "--step=99", "best, latest or one of", "6]")
    assert_one_sentence(command("evaluate", f"--workdir={tiny_run.workdir}", "--split=test"), "split", "val")
    workdir_lib.claim(tmp_path / "run", tiny_config(), workdir_lib.load(tiny_run.workdir)[1])
    assert_one_sentence(command("evaluate", f"--workdir={tmp_path / 'run'}"), "holds no checkpoint")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_predict_refuses_unusable_folders(command, tiny_run, tmp_path):
    arguments = [f"--workdir={tiny_run.workdir}", f"--output={tmp_path / 'out'}"]
    assert_one_sentence(command("predict", *arguments, f"--images={tmp_path / 'none'}"), tmp_path / "none")
    assert_one_sentence(command("predict", *arguments), "--images")
    images = f"--images={FOLDER}"
    assert_one_sentence(command("predict", *arguments, images, "--window=500"), "--window=500", "--window=497")
    assert_one_sentence(command("predict", *arguments, images, "--scales=a"), "--scales=a")
    assert_one_sentence(command("predict", *arguments, images, "--network=old"), "--network", "student", "teacher")


def test_damaged_files_of_a_run_are_named(command, tiny_run, tmp_path):
    for name, text in (("config.json", "{"), ("dataset.json", "[]"), ("dataset.json", None)):
        folder = tmp_path / f"{name}{text}"
        folder.mkdir()
        for file in ("config.json", "dataset.json"):
            shutil.copy(tiny_run.workdir / file, folder)
        (folder / name).unlink()
        if text:
            (folder / name).write_text(text)
        assert_one_sentence(command("evaluate", f"--workdir={folder}"), folder / name)


def test_a_config_file_with_a_mistake_is_named(command, tmp_path):
    for text, words in (
        ("def get_config(:\n", ["broken.py", "1"]),
        ("import pc2seg\n", ["pc2seg"]),
        ("settings = 3\n", ["get_config"]),
        (
            "from pc2seg_jax.config import default_config\ndef get_config():\n    return default_config().mode\n",
            ["mode"],
        ),
    ):
        (tmp_path / "broken.py").write_text(text)
        result = command("train", f"--config={tmp_path / 'broken.py'}", f"--workdir={tmp_path / 'run'}")
        assert_one_sentence(result, "--config", *words)


def test_train_starts_training_with_the_overridden_configuration(command, tmp_path, monkeypatch, tiny_run):
    seen = []

    def train_and_evaluate(config, workdir, **settings):
        seen.append((config, workdir))
        return tiny_run.result

    monkeypatch.setattr(training, "train_and_evaluate", train_and_evaluate)
    overrides = [
        "--config.steps=7",
        "--config.augment.crop_size=(33, 49)",
        "--config.loss.strategy=uniform",
        "--config.model.width=8",
    ]
    status, out, err = command("train", f"--config={SHAPES}:demo", f"--workdir={tmp_path}", *overrides)
    assert (status, err) == (0, "")
    ((config, workdir),) = seen
    assert workdir == str(tmp_path)
    assert config.augment.crop_size == (33, 49)
    assert (config.loss.strategy, config.model.width, config.steps) == ("uniform", 8, 7)
    assert "mIoU" in out
    assert f"{tiny_run.result['miou']:.2f}" in out


def test_evaluate_measures_a_checkpoint_on_any_number_of_devices(command, tmp_path, tiny_run):
    """Trained on one device; evaluated on the 8 of the tests, over which the run's batch of 4 cannot be split."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run.workdir, folder)
    shutil.rmtree(folder / "evaluation")
    status, out, err = command("evaluate", f"--workdir={folder}", "--step=best")
    assert (status, err) == (0, "")
    with Checkpoints(tiny_run.workdir) as checkpoints:
        name = f"{checkpoints.find('best')}_val.json"
    assert str(folder / "evaluation" / name) in out
    found, expected = (json.loads((run / "evaluation" / name).read_text()) for run in (folder, tiny_run.workdir))
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(found["miou"], expected["miou"], atol=0.05)  # other devices round other pixels
    assert f"{found['miou']:.2f}" in out


def test_help_of_every_command_shows_its_use_and_its_options(command):
    for name in COMMANDS:
        status, out, err = command(name, "--help")
        assert status in (0, 1), err
        assert f"pc2seg_jax.{name}" in out + err
        assert "--" in out + err
        assert "Traceback" not in out + err


def start(*arguments):
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


def test_mistakes_end_in_one_line_in_a_process_of_its_own(tmp_path, tiny_run):
    for arguments, words in (
        (["pc2seg_jax.train", "--config=configs/shapes.py", f"--workdir={tmp_path}", "--config.lr=1"], ["lr"]),
        (["pc2seg_jax.evaluate", f"--workdir={tiny_run.workdir}", "--step=99"], ["--step=99"]),
    ):
        done = start(*arguments)
        assert_one_sentence((done.returncode, done.stdout, done.stderr), *words)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argument", ["--help", "--compare={}"])
def test_a_reader_that_has_enough_ends_a_command_without_a_word(argument, unbuffered, tiny_run):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pc2seg_jax.evaluate", argument.format(tiny_run.workdir)]
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    found = subprocess.run(command, cwd=ROOT, env=env, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (found.returncode, found.stderr) == (141, "")


def test_help_reads_well_in_a_process_of_its_own():
    done = start("pc2seg_jax.train", "--help")
    text = done.stdout
    assert "python -m pc2seg_jax.train --config=configs/shapes.py --workdir=" in text
    assert "--config: A file of configs/" in text
    assert "--workdir: The run's folder" in text
    assert "%s" not in text
    assert not done.stderr


def test_weights_are_converted_once_and_nothing_is_overwritten(command, tmp_path):
    foreign, ours = torch_file("resnet50", width=64)
    source, output = tmp_path / "resnet50.pth", tmp_path / "resnet50.npz"
    write_torch(source, foreign)
    arguments = [f"--weights={source}", "--backbone=resnet50", f"--output={output}"]
    status, out, err = command("convert", *arguments)
    assert status in (0, None), err
    assert f"wrote {output}: backbone from {source}, {len(ours)} tensors" in out
    with np.load(output) as stored:
        assert {name: value.dtype for name, value in stored.items()} == dict.fromkeys(ours, np.float32)
        for name, value in stored.items():
            np.testing.assert_array_equal(value, ours[name])
    assert_one_sentence(command("convert", *arguments), f"--output={output}", "does not exist yet")
    other = tmp_path / "other.npz"
    wrong = ["--weights=nowhere.pth", "--backbone=resnet50", f"--output={other}"]
    assert_one_sentence(command("convert", *wrong), "--weights=nowhere.pth", "resnet50_imagenet1k_v1")
    wrong = [f"--weights={output}", "--backbone=resnet101", f"--output={other}"]
    assert_one_sentence(command("convert", *wrong), str(output), "block3/unit10")
    assert not other.exists()


def test_replay_needs_a_run_that_was_stopped(command, tmp_path, tiny_run):
    assert_one_sentence(command("train", f"--workdir={tmp_path / 'none'}", "--replay"), "is not the folder of a run")
    assert_one_sentence(command("train", f"--workdir={tiny_run.workdir}", "--replay"), "has nothing to replay")
    assert_one_sentence(command("train", f"--workdir={tmp_path / 'none'}"), "error: --config is missing")
    result = command("predict", "--workdir=runs/a")
    assert_one_sentence(result, "error: --images is missing: Files, folders", "--output is missing")
    assert "None" not in result[2]
