"""The report: its numbers are those of the runs' files, its pictures those of the data, and nothing in it is markup."""

import base64
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pc2seg_jax import report_page, reporting
from pc2seg_jax.data.folder import voc_palette
from pc2seg_jax.data.shapes import load_shapes
from pc2seg_jax.errors import UserError
from pc2seg_jax.report_chart import line_chart

PALETTE = voc_palette()
VOID = {"meta", "img", "circle", "path", "polyline"}
PICTURE = re.compile(r'<img class="(\w+)" alt="([^"]*)" src="data:image/png;base64,([^"]+)">')


@pytest.fixture(scope="module")
def workdirs(tiny_run, tiny_config, train, tmp_path_factory):
    """A run of PC2Seg and its supervised baseline."""
    baseline = tmp_path_factory.mktemp("runs") / "baseline"
    train(tiny_config(objective="supervised"), baseline)
    return [baseline, tiny_run.workdir]


@pytest.fixture(scope="module")
def records(workdirs):
    return reporting.read_records(workdirs)


@pytest.fixture(scope="module")
def written(workdirs, tmp_path_factory):
    """(page, printed table) of both runs with two images; the second writing replaces the first."""
    output = tmp_path_factory.mktemp("report") / "new" / "report.html"
    report_page.write_report(workdirs, output, 0)
    table = report_page.write_report(workdirs, output, 2)
    return output.read_text(), table


@pytest.fixture
def copy(tiny_run, tmp_path):
    """The folder of a run that a test may damage."""
    return shutil.copytree(tiny_run.workdir, tmp_path / "copy")


def pictures(page):
    """[(class, alternative text, pixels)] of every embedded picture."""
    return [
        (kind, alt, np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")))
        for kind, alt, data in PICTURE.findall(page)
    ]


def edit_json(path, change):
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


class Tags(html.parser.HTMLParser):
    """Fails on tags that are not closed in order, and collects all tags and attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes = [], set(), []

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.seen.add(tag)
        self.attributes += attributes


def parsed(page):
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert not tags.open
    return tags


def test_numbers_are_those_of_the_evaluation_files(workdirs, written):
    page, table = written
    lines = table.splitlines()
    assert len(lines) == 3
    for workdir, line in zip(workdirs, lines[1:], strict=True):
        results = [json.loads(path.read_text()) for path in (workdir / "evaluation").iterdir()]
        last = next(result for result in results if result["checkpoint"]["step"] == 6)
        assert workdir.name in line
        assert f"{last['miou']:.2f}" in line.split()
        row = re.search(rf"<tr><th>{workdir.name}</th>(.*?)</tr>", page).group(1)
        cells = [re.sub("<[^>]+>", "", cell) for cell in re.findall("<td[^>]*>(.*?)</td>", row)]
        best = max(results, key=lambda result: (result["miou"], result["checkpoint"]["step"]))
        assert cells[5] == f"{last['miou']:.2f}"
        assert cells[6] == f"{best['miou']:.2f} (step {best['checkpoint']['step']})"
        assert cells[7] == f"{last['pixel_accuracy']:.2f}"
        assert last["split"]["sha256"] in page
        for name, value in last["iou"].items():
            cells = re.search(rf"</span>{name}</th>(.*?)</tr>", page).group(1)
            assert ("absent" if value is None else f"{value:.2f}") in cells


def test_headline_says_what_the_objective_uses(records):
    baseline, method = (reporting.headline(record) for record in records)
    assert (baseline["unlabelled images"], baseline["images per step"]) == ("none", "8")
    assert (method["unlabelled images"], method["images per step"]) == ("5", "8 + 8")
    assert baseline["labelled images"] == method["labelled images"] == "3"
    assert float(method["images/s"]) > 0


def test_what_the_metrics_do_not_tell_is_a_dash(copy):
    (copy / "timings.jsonl").unlink()
    (copy / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "lo')
    record = reporting.read_records([copy])[0]
    row = reporting.headline(record)
    assert (row["training minutes"], row["images/s"]) == ("-", "-")
    assert reporting.curve(record, "loss") == []


def test_only_differing_keys_are_listed(records):
    assert reporting.config_differences(records) == {"objective": ["supervised", "pc2seg"]}


def test_pictures_are_val_images_with_their_truth_and_every_prediction(written, records):
    shown = pictures(written[0])
    assert written[0].count("data:image") == len(shown) == 2 * (2 + len(records))
    val = load_shapes(num_labeled=3, num_unlabeled=5, num_val=5).val
    for row, index in enumerate((0, 4)):  # the ends of the list
        image, truth, *predictions = shown[4 * row : 4 * row + 4]
        np.testing.assert_array_equal(image[2], val.read_image(index))
        np.testing.assert_array_equal(truth[2], PALETTE[val.read_mask(index)])
        assert [alt for _, alt, _ in predictions] == [f"prediction of {r.name}, {val.ids[index]}" for r in records]
        for _, _, pixels in predictions:
            assert {tuple(color) for color in pixels.reshape(-1, 3)} <= {tuple(color) for color in PALETTE[:7]}


def test_more_images_than_there_are_show_each_once(records):
    shown = reporting.make_pictures(records, 100)
    assert [picture.name for picture in shown] == [f"val_{i:05d}" for i in range(5)]


def test_ignored_pixels_are_grey_in_every_mask_and_not_counted(records):
    truth = np.zeros((8, 6), np.int32)
    truth[:4], truth[4:6] = 255, 1
    wrong, right = np.full((8, 6), 3), np.where(truth == 255, 2, truth)
    right[4] = 0  # 6 of 24 counted pixels
    page = report_page.render(records, [reporting.Picture("x", np.zeros((8, 6, 3), np.uint8), truth, [wrong, right])])
    assert "<figcaption>0.0 %</figcaption>" in page
    assert "<figcaption>75.0 %</figcaption>" in page
    for _, _, pixels in pictures(page)[1:]:
        assert np.all(pixels[:4] == pixels[:4, :, :1])
        assert pixels[:4].min() > 128
    np.testing.assert_array_equal(pictures(page)[2][2][4:], np.broadcast_to(PALETTE[3], (4, 6, 3)))


def test_large_pictures_are_shrunk_in_proportion(records):
    size = (800, 600)
    ids = np.ones(size, np.int64)
    page = report_page.render(records, [reporting.Picture("x", np.zeros((*size, 3), np.uint8), ids, [ids, ids])])
    assert {pixels.shape for _, _, pixels in pictures(page)} == {(384, 288, 3)}


def test_page_is_self_contained_well_formed_markup(written):
    tags = parsed(written[0])
    assert {"svg", "img", "table"} <= tags.seen
    assert not tags.seen & {"script", "link", "iframe"}
    for name, value in tags.attributes:
        assert name != "href"
        assert name != "src" or value.startswith("data:image/png;base64,")
    assert not re.search(r"https?:|@import|url\(", written[0])


def test_names_are_escaped(records):
    nasty = '<script>alert("1")</script>&'
    hostile = []
    for record in records:
        names = (nasty, *record.run.info.class_names[1:])
        iou = dict(zip(names, record.last["iou"].values(), strict=True))
        run = record.run._replace(info=record.run.info._replace(class_names=names))
        hostile.append(record._replace(name=nasty, run=run, last=record.last | {"iou": iou}))
    image = np.zeros((4, 4, 3), np.uint8)
    ids = np.zeros((4, 4), np.int64)
    page = report_page.render(hostile, [reporting.Picture(nasty, image, ids, [ids, ids])])
    assert "script" not in parsed(page).seen
    assert nasty not in page
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;" in page


def test_the_best_value_is_emphasised_where_values_differ_as_shown():
    assert report_page._emphasised([1.0, None, 2.0]) == ["1.00", "absent", "<b>2.00</b>"]
    assert report_page._emphasised([2.001, 2.002]) == ["2.00", "2.00"]
    assert report_page._emphasised([2.0]) == ["2.00"]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 37.0, 5e5])
def test_chart_places_values_on_the_scale_of_its_ticks(scale):
    curve = [(0, 0.0), (10, 0.5 * scale), (40, scale)]
    svg = line_chart("a < b", ["run"], [curve])
    assert "a &lt; b" in svg
    ticks = re.findall(r'<text x="38" y="([\d.]+)" text-anchor="end">([^<]+)</text>', svg)
    assert 3 <= len(ticks) <= 7
    heights, values = np.array(ticks, float).T
    circles = np.array(re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg), float)
    slope, offset = np.polyfit(heights - 3.5, values, 1)
    np.testing.assert_allclose(circles[:, 1] * slope + offset, [0, 0.5 * scale, scale], atol=0.002 * scale)
    across = circles[:, 0] - circles[0, 0]
    np.testing.assert_allclose(across / across[-1], [0, 0.25, 1], atol=1e-3)


def test_chart_of_a_single_point_and_of_a_constant_zero():
    for curves in ([[(400, 71.2)]], [[(0, 0.0)]], [[(1, 0.0), (2, 0.0)], []]):
        svg = line_chart("x", ["a", "b"][: len(curves)], curves)
        assert svg.count("<circle") == len(curves[0])
        assert "nan" not in svg


def sentence(*parts):
    return "(?s)" + ".*".join(map(re.escape, parts)) + r"[^\n]*\Z"


def test_a_folder_that_is_no_run_is_refused(workdirs, tmp_path):
    with pytest.raises(UserError, match=sentence(f"--runs names {tmp_path / 'no'}", "no config.json")):
        reporting.read_records([workdirs[0], tmp_path / "no"])


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


def test_runs_that_cannot_be_compared_are_refused(workdirs, copy):
    edit_json(copy / "dataset.json", lambda info: info["splits"]["val"].update(sha256="0" * 64))
    with pytest.raises(UserError, match=sentence("other val images", "00000000")):
        reporting.read_records([workdirs[0], copy])
    edit_json(copy / "dataset.json", lambda info: info["class_names"].__setitem__(1, "cat"))
    with pytest.raises(UserError, match="other classes"):
        reporting.read_records([workdirs[0], copy])


def test_pictures_of_another_val_list_are_refused(copy):
    edit_json(copy / "config.json", lambda config: config["data"].update(num_val=4))
    records = reporting.read_records([copy])
    with pytest.raises(UserError, match=sentence("val images has changed", "5 images then, 4 now", "--images=0")):
        reporting.make_pictures(records, 1)
    assert reporting.make_pictures(records, 0) == []


def test_runs_of_equal_names_are_told_apart_by_their_paths(tiny_run, tmp_path):
    same = shutil.copytree(tiny_run.workdir, tmp_path / tiny_run.workdir.name)
    records = reporting.read_records([tiny_run.workdir, same])
    assert [record.name for record in records] == [str(tiny_run.workdir), str(same)]


def test_outputs_that_are_no_html_file_are_refused(workdirs, tmp_path):
    (tmp_path / "folder.html").mkdir()
    for name in ("folder.html", "report", "thesis.pdf", ""):
        with pytest.raises(UserError, match=sentence("--output=", "ends in .html")):
            report_page.write_report(workdirs, tmp_path / name, 0)
    with pytest.raises(UserError, match="--runs is empty"):
        report_page.write_report([], tmp_path / "report.html", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_the_command_ends_in_one_sentence(tmp_path):
    command = [sys.executable, "-m", "pc2seg_jax.report", f"--runs={tmp_path}", f"--output={tmp_path}/report.html"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: --runs names [^\n]*\n", done.stderr)
