"""Exports: equal to the checkpoint in every format, alone in a process without jax, and nobody's files lost."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import onnxruntime
import pytest
from PIL import Image
from strong_weights import strong

from pc2seg_jax import build, exported, exporting, onnx_file, restoring, saved_model, workdir
from pc2seg_jax.checkpoints import Checkpoints
from pc2seg_jax.data.folder import voc_palette
from pc2seg_jax.errors import UserError
from pc2seg_jax.inference import predict_probabilities
from pc2seg_jax.types import TrainState

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ("sky", "straße", "a tree", "car", "dog", "cat", "bird")
SIZES = ((1, 1, 1), (2, 33, 50), (1, 70, 17))


@pytest.fixture(scope="module", autouse=True)
def compared_size():
    """One size is compared when an export is written in this process; three are in that of the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "SIZES", exporting.SIZES[1:2])
        yield


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_config):
    """A run that trained in bfloat16, with a teacher, at step 7."""
    folder = tmp_path_factory.mktemp("export") / "run"
    config = tiny_config(model__dtype="bfloat16", model__aspp_rates=(2,))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(build.build_model(config, len(NAMES)).init, jax.random.key(0))
    student, teacher = ([strong(tree, rng) for tree in shapes] for _ in range(2))
    workdir.claim(folder, config, workdir.DatasetInfo(NAMES, voc_palette().tolist(), 255, (97, 97), {}))
    with Checkpoints(folder, create=True) as checkpoints:
        teacher = dict(zip(("params", "batch_stats"), teacher, strict=True))
        checkpoints.save(TrainState(np.int32(7), *student, {"none": np.zeros(1)}, teacher), 50.0)
    return folder


@pytest.fixture(scope="module")
def run(run_folder):
    return restoring.restore(run_folder, "best")


@pytest.fixture(scope="module")
def written(run_folder, tmp_path_factory):
    """All formats of the teacher, by the command: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("inside") / "new" / "model"
    command = [sys.executable, "-m", "pc2seg_jax.export", f"--workdir={run_folder}", f"--output={folder}"]
    done = subprocess.run([*command, "--network=teacher"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout


@pytest.fixture(scope="module")
def inside(written):
    return written[0]


@pytest.fixture(scope="module")
def beside(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside")
    exporting.export_run(run, folder, which="teacher", formats=["stablehlo"], weights="beside")
    return folder


def images_of(size):
    return np.random.default_rng(size).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(run):
    """[(images, probabilities)] of the teacher in float32, padded here to the next 16k + 1."""
    config = run.config.copy_and_resolve_references()
    config.model.dtype = "float32"
    model = build.build_model(config, len(NAMES))
    forward = jax.jit(lambda images: predict_probabilities(model, **run.teacher, images=images))
    pairs = []
    for size in SIZES:
        images = images_of(size)
        rows, columns = (next(side for side in range(1, 999, 16) if side >= own) for own in size[1:])
        canvas = np.full((size[0], rows, columns, 3), 127.5, np.float32)
        canvas[:, : size[1], : size[2]] = images
        pairs.append((images, np.asarray(forward(canvas))[:, : size[1], : size[2]]))
    return pairs


def assert_equal_to(expected, probabilities):
    for (_, right), ours in zip(expected, probabilities, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, right, rtol=0, atol=1e-4)
        assert right.size == len(NAMES) or right.std(axis=(0, 1, 2)).max() > 0.02  # something to be equal to


def test_the_command_compares_every_format_with_the_checkpoint(written):
    folder, printed = written
    first, second, *lines = printed.splitlines()
    assert first == f"wrote stablehlo, onnx, saved_model of step 7 (teacher) to {folder}, computing in float32"
    assert "1 x 97 x 129, 2 x 60 x 75, 1 x 33 x 150; at most 1e-04 is accepted" in second
    differences = {name: float(number) for name, number in map(str.split, lines)}
    assert tuple(differences) == exporting.FORMATS
    assert max(differences.values()) <= 1e-4
    stored = json.loads((folder / "model.json").read_text())["largest_difference"]
    assert {name: float(f"{difference:.1e}") for name, difference in stored.items()} == differences


@pytest.fixture(scope="module")
def model(inside):
    return exported.load_export(inside)


def test_the_program_equals_the_checkpoint_for_images_of_any_size(model, expected):
    assert_equal_to(expected, [model.probabilities(images) for images, _ in expected])


def test_weights_beside_the_program_are_the_same_function(inside, beside, model, expected):
    size = (beside / "weights.npz").stat().st_size
    programs = [(folder / "model.stablehlo").stat().st_size for folder in (inside, beside)]
    assert programs[0] - programs[1] > size / 2
    with np.load(beside / "weights.npz") as weights:
        assert not [name for name in weights if name.startswith("params/projection")]
    images, _ = expected[1]
    ours = exported.load_export(beside).probabilities(images)
    np.testing.assert_allclose(ours, model.probabilities(images), rtol=0, atol=1e-5)


def test_the_program_is_for_every_platform_and_never_rounds_to_less_than_float32(inside):
    program = jax.export.deserialize(bytearray((inside / "model.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    text = program.mlir_module()
    assert "bf16" not in text
    assert "precision HIGHEST" in text or "precision = [HIGHEST" in text
    assert "DEFAULT" not in text


def without_jax(code, expected, tmp_path):
    """Probabilities that `code`, which defines probabilities(images), gives in a process without jax."""
    np.savez(tmp_path / "images.npz", *(images for images, _ in expected))
    code = f"""
import sys
for name in ("jax", "jaxlib", "flax", "pc2seg_jax"):
    sys.modules[name] = None
import numpy as np
{code}
with np.load("images.npz") as images:
    np.savez("probabilities.npz", *(probabilities(images[name]) for name in images))
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    with np.load(tmp_path / "probabilities.npz") as arrays:
        return [arrays[name] for name in arrays]


def test_onnx_runs_without_jax(inside, expected, tmp_path):
    code = f"""
import onnxruntime
session = onnxruntime.InferenceSession({str(inside / "model.onnx")!r})
probabilities = lambda images: session.run(None, {{"images": images}})[0]
"""
    assert_equal_to(expected, without_jax(code, expected, tmp_path))


def test_the_saved_model_is_written_for_a_tensorflow_older_than_jax(inside):
    """With the pins of one Python, TensorFlow would read jax's own StableHLO; with those of the next, it does not."""
    graph = (inside / "saved_model" / "saved_model.pb").read_bytes()
    assert set(re.findall(rb"StableHLO_v[0-9.]+", graph)) == {b"StableHLO_v" + saved_model.STABLEHLO_VERSION.encode()}


def test_saved_model_runs_without_jax(inside, expected, tmp_path):
    code = f"""
import tensorflow as tf
model = tf.saved_model.load({str(inside / "saved_model")!r})
predict = model.signatures["serving_default"]
probabilities = lambda images: predict(images=tf.constant(images))["probabilities"].numpy()
"""
    # One size, because TensorFlow compiles for every one; the command has compared three.
    assert_equal_to(expected[1:2], without_jax(code, expected[1:2], tmp_path))


@pytest.mark.parametrize("which", ["inside", "beside"])
def test_the_example_runs_without_this_package(which, request, tmp_path):
    folder = request.getfixturevalue(which)
    image = images_of((1, 40, 61))[0]
    Image.fromarray(image).save(tmp_path / "image.png")
    code = (
        "import runpy, sys; sys.modules['pc2seg_jax'] = sys.modules['flax'] = None; "
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    arguments = [folder / "run_stablehlo.py", "image.png", "mask.png"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == list(NAMES)
    with Image.open(tmp_path / "mask.png") as mask:
        ids, palette = np.asarray(mask), np.reshape(mask.getpalette(), (-1, 3))
    np.testing.assert_array_equal(ids, exported.load_export(folder).probabilities(image[None])[0].argmax(-1))
    np.testing.assert_array_equal(palette[: len(NAMES)], voc_palette()[: len(NAMES)])
    assert len((ROOT / "pc2seg_jax" / "run_stablehlo.py").read_text().splitlines()) <= 25


def test_metadata_is_in_every_format(inside, model):
    assert (model.class_names, model.ignore_id, model.step) == (NAMES, 255, 7)
    assert model.palette.dtype == np.uint8
    np.testing.assert_array_equal(model.palette, voc_palette())
    description = json.loads((inside / "model.json").read_text())
    assert (description["network"], description["mean_pixel"]) == ("teacher", [127.5] * 3)
    assert len(description["config_sha256"]) == 64
    asset = json.loads((inside / "saved_model" / "assets" / "model.json").read_text())
    metadata = onnxruntime.InferenceSession(inside / "model.onnx").get_modelmeta().custom_metadata_map
    assert metadata["network"] == "teacher"
    for key in ("class_names", "palette", "ignore_id", "mean_pixel", "step", "versions", "input", "output"):
        assert asset[key] == json.loads(metadata[key]) == description[key], key
    for key in ("preprocessing", "config_sha256"):
        assert asset[key] == metadata[key] == description[key], key


def test_student_and_teacher_are_different_and_a_missing_teacher_is_said(run):
    student, teacher = (exporting.take_network(run, which).weights for which in exporting.NETWORKS)
    assert student.keys() == teacher.keys()
    assert any(np.abs(student[name] - teacher[name]).max() > 0.1 for name in student)
    with pytest.raises(UserError, match=r"\A--network=teacher: the run keeps none .*--network=student\Z"):
        exporting.take_network(run._replace(teacher={}), "teacher")


def export(run, output, **changes):
    settings = {"which": "student", "formats": ["onnx"], "weights": "inside"} | changes
    return exporting.export_run(run, output, **settings)


@pytest.fixture
def quick(monkeypatch):
    """What is written does not matter."""
    monkeypatch.setattr(
        onnx_file, "write_onnx", lambda function, images, path, description: path.write_bytes(b"a program")
    )


def test_nothing_that_a_user_made_is_replaced(run, quick, monkeypatch, tmp_path):
    monkeypatch.setattr(exporting, "compare", lambda *_: {"onnx": 0.0})
    output, thesis = tmp_path / "model", tmp_path / "thesis.txt"
    thesis.write_text("precious")
    with pytest.raises(UserError, match=r"thesis.txt is not a folder: name another one"):
        export(run, thesis)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"is not empty: name a new|is not an earlier export and stays as it is"):
            export(run, tmp_path, overwrite=overwrite)
    (output / ".export.part").mkdir(parents=True)  # an empty folder is filled, also where a killed export began to
    (output / ".export.part" / "model.onnx").write_bytes(b"half")
    export(run, output)
    assert {path.name for path in output.iterdir()} == {"model.json", "model.onnx"}
    with pytest.raises(UserError, match=r"exists and is not empty: .* with --overwrite\Z"):
        export(run, output)
    before = (output / "model.onnx").read_bytes()
    export(run, output, overwrite=True)
    assert (output / "model.onnx").read_bytes() == before
    (output / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match=r"notes.txt is not a part of an export and is not replaced: move it"):
        export(run, output, overwrite=True)
    (output / "notes.txt").unlink()
    (output / "photos").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"photos is not a part of an export and is not replaced: move it"):
        export(run, output, overwrite=True)
    (output / "photos").unlink()
    (output / "model.onnx").write_bytes(b"quantised by the user")
    with pytest.raises(UserError, match=r"model.onnx was changed since it was exported and is not replaced"):
        export(run, output, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "thesis.txt"}


def test_a_format_that_differs_is_an_error_and_leaves_nothing(run, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "open_onnx", lambda path: lambda images: np.full((*images.shape[:3], 7), np.nan))
    with pytest.raises(UserError, match=r"onnx differs from the checkpoint by nan, expected at most 1e-04, so nothing"):
        export(run, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_formats_that_cannot_be_written_are_said_first(run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"\A--formats=pytorch is expected to name some of: stablehlo, onnx, saved_"):
        export(run, tmp_path / "model", formats=["pytorch"])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs the package onnxruntime, .*: pip install onnxruntime, or leave onnx"):
        export(run, tmp_path / "model")
    monkeypatch.setitem(sys.modules, "pc2seg_jax.data.quiet_tensorflow", None)
    with pytest.raises(UserError, match=r"needs the package tensorflow, .*: pip install tensorflow, or leave saved"):
        export(run, tmp_path / "model", formats=["stablehlo", "saved_model"])
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_loaded_is_said_in_a_sentence(beside, tmp_path):
    def refused(pattern):
        with pytest.raises(UserError, match=pattern) as error:
            exported.load_export(tmp_path)
        assert "\n" not in str(error.value)

    refused("is not a folder written by pc2seg_jax.export: it has no model.json")
    good = json.loads((beside / "model.json").read_text())
    for text in ("[]", "{", json.dumps({"kind": "another"})):
        (tmp_path / "model.json").write_text(text)
        refused("model.json is not a description written by pc2seg_jax.export")
    (tmp_path / "model.json").write_text(json.dumps(good | {"layout": 2}))
    refused("layout 2, expected 'pc2seg_jax export', layout 1: export again")
    (tmp_path / "model.json").write_text(json.dumps(good | {"files": {}}))
    refused("has no model.stablehlo: export the run again with --formats=stablehlo")
    (tmp_path / "model.json").write_text(json.dumps(good))
    refused("model.stablehlo is missing or damaged")
    (tmp_path / "model.stablehlo").write_bytes((beside / "model.stablehlo").read_bytes())
    (tmp_path / "weights.npz").write_bytes((beside / "weights.npz").read_bytes()[:-100])
    refused("weights.npz is missing or damaged: export the run again, or copy the whole folder")
    (tmp_path / "model.stablehlo").write_bytes(b"of another time")
    files = good["files"] | {"model.stablehlo": exported.sha256(tmp_path / "model.stablehlo")}
    (tmp_path / "model.json").write_text(json.dumps(good | {"files": files}))
    (tmp_path / "weights.npz").write_bytes((beside / "weights.npz").read_bytes())
    refused("model.stablehlo cannot be read by jax")


@pytest.mark.parametrize(
    "images", [np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3)), np.zeros((0, 4, 4, 3), "u1")]
)
def test_other_images_are_refused(beside, images):
    with pytest.raises(ValueError, match="expected uint8"):
        exported.load_export(beside).probabilities(images)


def test_the_command_refuses_in_one_sentence(run_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    command = [sys.executable, "-m", "pc2seg_jax.export", f"--workdir={run_folder}", f"--output={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"error: --output={tmp_path} exists and is not empty")
