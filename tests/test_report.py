"""What a report says of runs is what their folders hold: what they lack is a dash, and what is damaged is named."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import stored_results

from pc2seg_jax import evaluation, report_page, reporting
from pc2seg_jax.errors import UserError
from pc2seg_jax.ops.metrics import mean_iou


@pytest.fixture(scope="module")
def records(report_runs):
    return reporting.read_records(report_runs)


@pytest.fixture
def copy(report_runs, tmp_path):
    """The folder of a run that a test may damage."""
    return shutil.copytree(report_runs[1], tmp_path / "copy")


def test_headline_is_that_of_the_evaluation_files(report_runs, records):
    for workdir, record in zip(report_runs, records, strict=True):
        results = [json.loads(path.read_text()) for path in (workdir / "evaluation").glob("*_val.json")]
        last = next(result for result in results if result["checkpoint"]["step"] == 6)
        best = max(results, key=lambda result: (result["miou"], result["checkpoint"]["step"]))
        row = reporting.headline(record)
        assert row["run"] == workdir.name
        assert row["val mIoU %"] == f"{last['miou']:.2f}"
        assert row["95 % interval"] == f"{last['miou'] - 1.5:.2f} to {last['miou'] + 2:.2f}"
        assert row["best val mIoU %"] == f"{best['miou']:.2f} (step {best['checkpoint']['step']})"
        assert row["val mIoU % of the teacher"] == f"{last['teacher']['miou']:.2f}"
        assert row["pixel accuracy %"] == f"{last['pixel_accuracy']:.2f}"
        assert row["boundary mIoU %"] == f"{last['miou'] / 2:.2f}"
        assert row["calibration error %"] == "7.25"
        assert "cpu, " in row["hardware"]


def test_headline_says_what_the_objective_uses(records):
    baseline, method = (reporting.headline(record) for record in records)
    assert (baseline["unlabelled images"], baseline["images per step"]) == ("none", "8")
    assert (method["unlabelled images"], method["images per step"]) == ("5", "8 + 8")
    assert baseline["labelled images"] == method["labelled images"] == "3"
    assert float(method["images/s"]) > 0


def test_what_the_folder_does_not_tell_is_a_dash(copy):
    stored_results.strip(copy)
    (copy / "timings.jsonl").unlink()
    (copy / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "lo')
    record = reporting.read_records([copy])[0]
    row = reporting.headline(record)
    unknown = ("95 % interval", "boundary mIoU %", "calibration error %", "training minutes", "images/s", "hardware")
    assert {row[title] for title in unknown} == {"-"}
    assert reporting.curve(record, "loss") == []
    assert reporting.image_scores([record]) == {}
    assert list(reporting.choose_images([record], tuple("abcdef"), 3)) == ["spread"]
    page = report_page.render([record], [])
    for section in ("Calibration", "Confusion", "Pseudo-labels", "Predictions"):
        assert f"<h2>{section}</h2>" not in page
    assert "trained by a version that did not note them" in page


def test_other_protocols_are_not_the_runs_result(copy):
    main, _ = stored_results.files(copy)
    for name in ("6_val_flip", "6_train", "6_my_val"):
        other = main.with_name(f"{name}.json")
        shutil.copy(main, other)
        stored_results.edit(other, lambda stored: stored.update(miou=99.0))
    row = reporting.headline(reporting.read_records([copy])[0])
    assert "99" not in row["val mIoU %"] + row["best val mIoU %"]


def test_only_differing_keys_are_listed(records):
    assert reporting.config_differences(records) == {"objective": ["supervised", "pc2seg"]}


def test_differences_are_those_of_the_comparison(records):
    base, row = reporting.differences(records)
    assert "difference" not in base
    mious = [100 * mean_iou(sum(record.images.values())) for record in records]
    np.testing.assert_allclose(row["difference"]["miou"], mious[1] - mious[0])
    assert row["difference"]["better"] + row["difference"]["worse"] == 4, "of the fifth, nothing is right in both"
    assert reporting.differences(records[:1]) == []
    assert reporting.differences([records[0], records[1]._replace(images={})]) == []
    other = records[1].last | {"protocol": records[1].last["protocol"] | {"flip": True}}
    assert reporting.differences([records[0], records[1]._replace(last=other)]) == []


def test_images_are_ranked_by_their_scores_and_by_the_difference_of_these(records):
    scores = reporting.image_scores(records)
    for name, values in scores.items():
        np.testing.assert_allclose(values, [100 * mean_iou(record.images[name]) for record in records])
    ids = tuple(f"val_{i:05d}" for i in range(5))
    different = max(range(5), key=lambda i: abs(scores[ids[i]][0] - scores[ids[i]][1]))
    expected = {"different": [different], "worst": [1], "best": [3], "spread": [0, 4]}
    assert reporting.choose_images(records, ids, 2) == expected
    assert reporting.choose_images(records, ids, 9) == expected | {"spread": [0, 1, 2, 3, 4]}
    assert reporting.choose_images(records[:1], ids, 2) == {"worst": [1], "best": [3], "spread": [0, 4]}
    right = {ids[1]: np.diag(range(1, 8))}
    runs = [records[0]._replace(images=records[0].images | right), records[1]]
    assert reporting.choose_images(runs, ids, 2)["different"] == [1], "right in one, wrong in the other"


def test_an_image_of_one_class_is_chosen_only_where_all_are(records):
    ids = tuple(f"val_{i:05d}" for i in range(5))
    alone = np.diag([90] + [0] * 6)
    images = records[0].images | {ids[0]: alone}
    scores = reporting.image_scores([records[0]._replace(images=images)])
    assert max(scores, key=scores.get) == ids[0]
    chosen = reporting.choose_images([records[0]._replace(images=images), records[1]], ids, 9)
    assert chosen["best"] == [3]
    assert chosen["different"] != [0]
    everywhere = [records[0]._replace(images=dict.fromkeys(ids, alone))]
    assert len(reporting.choose_images(everywhere, ids, 2)["best"]) == 1
    assert reporting.choose_images(records, ids[:1], 2) == {"spread": [0]}, "a list of which one image is left"


def test_images_without_a_counted_pixel_and_runs_without_images_are_not_ranked(records):
    images = dict(records[0].images)
    images["val_00001"] = np.zeros_like(images["val_00001"])
    assert list(reporting.image_scores([records[0]._replace(images=images)])) == [f"val_0000{i}" for i in (0, 2, 3, 4)]
    assert reporting.image_scores([records[0], records[1]._replace(images={})]) == {}


def sentence(*parts):
    return "(?s)" + ".*".join(map(re.escape, parts)) + r"[^\n]*\Z"


def test_a_folder_that_is_no_run_is_refused(report_runs, tmp_path):
    with pytest.raises(UserError, match=sentence(f"--runs names {tmp_path / 'no'}", "no config.json")):
        reporting.read_records([report_runs[0], tmp_path / "no"])


def test_a_run_without_checkpoint_is_refused(copy):
    for step in (copy / "checkpoints").iterdir():
        shutil.rmtree(step) if step.is_dir() else step.unlink()
    with pytest.raises(UserError, match="holds no checkpoint"):
        reporting.read_records([copy])
    (copy / "checkpoints").rmdir()
    with pytest.raises(UserError, match=sentence(str(copy), "holds no checkpoint")):
        reporting.read_records([copy])


def test_a_run_without_evaluation_of_its_checkpoint_is_refused(copy):
    (copy / "evaluation" / "6_val.json").write_text("{")
    with pytest.raises(UserError, match=sentence("6_val.json is damaged")):
        reporting.read_records([copy])
    (copy / "evaluation" / "6_val.json").unlink()
    with pytest.raises(UserError, match=sentence("step 6", f"pc2seg_jax.evaluate --workdir={copy}")):
        reporting.read_records([copy])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda stored: stored.pop("miou"), "miou is missing"),
        (lambda stored: stored["iou"].pop("background"), "its classes are not the run's"),
        (lambda stored: stored.update(confusion=[[1, 2], [3, 4]]), "its confusion matrix is not one of 7 classes"),
        (lambda stored: stored.update(confusion=[[1], [3, 4]]), "is damaged"),
    ],
)
def test_a_damaged_evaluation_is_named(copy, change, words):
    stored_results.edit(stored_results.files(copy)[0], change)
    with pytest.raises(
        UserError, match=sentence("6_val.json is damaged", words.removeprefix("is damaged"), "evaluate")
    ):
        reporting.read_records([copy])


def test_damaged_results_of_images_are_named(copy):
    path = stored_results.files(copy)[1]
    whole = path.read_bytes()
    np.savez(path, ids=np.array(["a"]), network=np.zeros((2, 7, 7), np.int32))
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes(255 - x for x in whole[middle : middle + 40]) + whole[middle + 40 :]
    wrong = whole[:-40], whole.replace(b"network", b"notwork"), flipped
    for content in (path.read_bytes(), b"", b"no archive", *wrong):
        path.write_bytes(content)
        with pytest.raises(UserError, match=sentence("6_val.npz is damaged", "pc2seg_jax.evaluate")):
            reporting._read_images(path, 7)
    for content in (b"", b"no archive", whole[:-40], flipped):
        path.write_bytes(content)
        with pytest.raises(UserError, match=sentence("6_val.npz is damaged", "pc2seg_jax.evaluate")):
            evaluation.read(copy, "6_val")


def test_runs_that_cannot_be_compared_are_refused(report_runs, copy):
    stored_results.edit(copy / "dataset.json", lambda info: info["splits"]["val"].update(sha256="0" * 64))
    with pytest.raises(UserError, match=sentence("other val images", "00000000")):
        reporting.read_records([report_runs[0], copy])
    names = {}
    stored_results.edit(copy / "dataset.json", lambda info: names.update(old=info["class_names"][1]))
    stored_results.edit(copy / "dataset.json", lambda info: info["class_names"].__setitem__(1, "cat"))
    for path in (copy / "evaluation").glob("*_val.json"):
        stored_results.edit(path, lambda stored: stored["iou"].update(cat=stored["iou"].pop(names["old"])))
    with pytest.raises(UserError, match="other classes"):
        reporting.read_records([report_runs[0], copy])


def test_runs_of_equal_names_are_told_apart_by_their_paths(report_runs, tmp_path):
    same = shutil.copytree(report_runs[1], tmp_path / "tiny")
    records = reporting.read_records([report_runs[1], same])
    assert [record.name for record in records] == [str(report_runs[1]), str(same)]


def test_outputs_that_are_no_html_file_are_refused(report_runs, tmp_path):
    (tmp_path / "folder.html").mkdir()
    for name in ("folder.html", "report", "thesis.pdf", ""):
        with pytest.raises(UserError, match=sentence("--output=", "ends in .html")):
            report_page.write_report(report_runs, tmp_path / name, 0)
    with pytest.raises(UserError, match="--runs is empty"):
        report_page.write_report([], tmp_path / "report.html", 0)
    with pytest.raises(UserError, match=sentence("--output is missing", "2 runs")):
        report_page.write_report(report_runs, None, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_the_report_of_one_run_lies_in_its_folder(command, copy):
    status, out, err = command("report", f"--runs={copy}", "--images=0")
    assert status == 0, err
    assert out.splitlines()[-1] == f"wrote {copy.resolve() / 'report.html'}"
    assert "data:image" not in (copy / "report.html").read_text(), "no data is read"


def test_the_command_ends_in_one_sentence(tmp_path):
    command = [sys.executable, "-m", "pc2seg_jax.report", f"--runs={tmp_path}", f"--output={tmp_path}/report.html"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: --runs names [^\n]*\n", done.stderr)
