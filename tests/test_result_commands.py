"""Commands that use a trained run: predict leaves out what is no image, evaluate stores and compares."""

import json
import shutil

import pytest
import stored_results
from PIL import Image
from sentences import assert_one_sentence


def test_predict_leaves_out_what_is_no_image_and_says_so_at_the_end(command, tiny_run, tmp_path):
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    Image.new("RGB", (20, 30)).save(images / "good.png")
    (images / "broken.png").write_bytes(b"")
    arguments = [f"--workdir={tiny_run.workdir}", f"--images={images}", f"--output={output}"]
    status, out, err = command("predict", *arguments, "--network=teacher", "--flip")
    assert status == 1
    assert "wrote 1 masks" in out
    assert "images/s" in out
    assert err.splitlines() == [
        f"left out: {images / 'broken.png'} is not an image of a kind that can be read",
        "error: 1 of 2 images were left out",
    ]
    assert [path.name for path in (output / "masks").iterdir()] == ["good.png"]


def test_evaluations_are_stored_and_compared(command, tiny_run, tmp_path):
    runs = [tmp_path / name for name in ("a", "b")]
    for run in runs:
        shutil.copytree(tiny_run.workdir, run)
    status, out, _ = command("evaluate", f"--workdir={runs[0]}", "--flip", "--scales=0.5,1", "--window=65")
    assert status == 0
    name = "6_val_scales0.5-1_flip_window65"
    assert "scales 0.5, 1, flip, windows of 65x65; in %" in out
    stored = json.loads((runs[0] / "evaluation" / f"{name}.json").read_text())
    assert stored["protocol"]["scales"] == [0.5, 1.0]
    assert "<svg" in (runs[0] / "evaluation" / f"{name}_confusion.svg").read_text()
    assert stored["calibration"] != tiny_run.result["calibration"]
    (runs[1] / "evaluation" / "6_val.npz").unlink()  # then it is evaluated again
    stored_results.edit(runs[0] / "dataset.json", lambda info: info.update(eval_size=[81, 81]))
    assert command("evaluate", f"--workdir={runs[0]}", "--split=labeled")[0] == 0  # images of 97 x 97
    assert json.loads((runs[0] / "evaluation" / "6_labeled.json").read_text())["protocol"]["size"] == [97, 97]
    shutil.copy(tiny_run.workdir / "dataset.json", runs[0])
    both = f"--compare={runs[0]},{runs[1]}"
    status, out, _ = command("evaluate", both, f"--output={tmp_path / 'rows.json'}")
    assert status == 0
    assert "+0.00 [+0.00, +0.00]" in out
    first, second = json.loads((tmp_path / "rows.json").read_text())
    assert first["miou"] == pytest.approx(tiny_run.result["miou"])
    assert second["difference"]["better"] == second["difference"]["worse"] == 0
    assert command("evaluate", both, "--network=teacher")[0] == 0
    assert_one_sentence(command("evaluate", both, f"--output={runs[0] / 'config.json'}"), "config.json", "--overwrite")
    status, out, _ = command(
        "evaluate", f"--compare={runs[0]},{tmp_path / '[b]'}", f"--output={tmp_path / 'rows.json'}", "--overwrite"
    )
    assert status == 0
    assert "mean ± standard deviation over seeds" in out
    assert json.loads((tmp_path / "rows.json").read_text())[1]["difference"]["miou"]["by_seed"] == [0.0]
    assert_one_sentence(command("evaluate", f"--compare={tmp_path}/*"), "two runs of seed 0", runs[0], runs[1])
    assert_one_sentence(command("evaluate", f"--compare={runs[0]},{runs[0]}"), "twice")
    assert_one_sentence(command("evaluate", both, f"--workdir={runs[0]}"), "--workdir=DIR", "--compare=DIR,DIR")
    assert_one_sentence(command("evaluate", both, f"--output={tmp_path / 'none' / 'a.json'}"), "--output")
    for flag in ("--output=x.json", "--network=teacher"):
        assert_one_sentence(command("evaluate", f"--workdir={runs[0]}", flag), flag.split("=")[0], "--compare")
    assert_one_sentence(command("evaluate", f"--compare={runs[0]},{tmp_path / 'no'}"), tmp_path / "no")
