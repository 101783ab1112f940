"""The report's page: its pictures are those of the data, its charts those of the numbers, and no value is markup."""

import base64
import html.parser
import io
import json
import re
import shutil

import numpy as np
import pytest
import stored_results
from PIL import Image

from pc2seg_jax import report_gallery, report_markup, report_page, reporting
from pc2seg_jax.data.folder import voc_palette
from pc2seg_jax.data.shapes import load_shapes
from pc2seg_jax.errors import UserError
from pc2seg_jax.report_chart import area_chart, line_chart, reliability_chart, thinned

PALETTE = voc_palette()
VOID = {"meta", "img", "circle", "path", "polyline", "polygon", "rect", "br"}
PICTURE = re.compile(r'<img class="(\w+)" alt="([^"]*)"[^>]* src="data:image/(\w+);base64,([^"]+)">')


@pytest.fixture(scope="module")
def records(report_runs):
    return reporting.read_records(report_runs)


@pytest.fixture(scope="module")
def written(report_runs, tmp_path_factory):
    """(page, printed table) of both runs with two images; the second writing replaces the first."""
    output = tmp_path_factory.mktemp("report") / "new" / "report.html"
    report_page.write_report(report_runs, output, 0)
    path, table = report_page.write_report(report_runs, output, 2)
    assert path == output
    return output.read_text(), table


def pictures(page):
    """[(class, alternative text, pixels)] of every embedded picture."""
    return [
        (kind, alt, np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")))
        for kind, alt, form, data in PICTURE.findall(page)
        if form == {"photo": "jpeg", "mask": "png"}[kind]
    ]


def section(page, name):
    return re.search(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL).group(1)


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


def cells(page, name):
    """The cells of the first row called `name`, without their markup."""
    row = re.search(rf"<tr><th>(?:<span[^>]*></span>)?{re.escape(name)}</th>(.*?)</tr>", page).group(1)
    return [re.sub("<[^>]+>", "", cell) for cell in re.findall("<td[^>]*>(.*?)</td>", row)]


def test_numbers_are_those_of_the_evaluation_files(report_runs, written):
    page, table = written
    results = [json.loads(stored_results.files(workdir)[0].read_text()) for workdir in report_runs]
    for workdir, line, result in zip(report_runs, table.splitlines()[1:], results, strict=True):
        assert workdir.name in line
        assert f"{result['miou']:.2f}" in line.split()
        assert result["split"]["sha256"] in section(page, "protocol-and-data")
    assert cells(page, "val mIoU %") == [f"{result['miou']:.2f}" for result in results]
    classes, boundaries = section(page, "classes").split("<h3>Boundary")
    for name in results[0]["iou"]:
        shown = {None: "absent"}
        for block, key in ((classes, "iou"), (boundaries, "boundary_iou")):
            values = [result[key][name] for result in results]
            assert cells(block, name) == [shown.get(value) or f"{value:.2f}" for value in values]
    assert page.count('class="confusion"') == 2
    for result in results:
        confusion = np.array(result["confusion"])
        share = 100 * confusion[2, 2] / confusion[2].sum()
        assert f"found: {share:.1f} %, {confusion[2, 2]} pixels" in page
    bias = 100 * np.mean([(i + 0.5) / 15 - 0.9 * i / 15 for i in range(5, 15)])
    assert cells(section(page, "calibration"), "baseline") == ["7.25", f"+{bias:.2f}"]


def test_every_section_is_there_and_linked(written):
    links = re.findall(r'<a href="#([\w-]+)">', written[0])
    assert links == re.findall(r'<section id="([\w-]+)">', written[0])
    assert links[:6] == ["results", "classes", "learning-curves", "predictions", "confusion", "calibration"]
    assert links[6:9] == ["pseudo-labels", "drawn-negatives", "configuration"]
    assert links[9:] == ["protocol-and-data", "versions-and-hardware"]


def test_a_run_tells_its_pseudo_labels_its_configuration_and_its_starts(written):
    pseudo = section(written[0], "pseudo-labels")
    assert "Mean confidence" in pseudo
    assert "Share that is right" not in pseudo, "the masks of unlabelled images were not read"
    assert pseudo.count("<polygon") == 7
    configuration = section(written[0], "configuration")
    assert "loss.num_negatives = 10" in configuration
    assert "<code>supervised</code>" in configuration
    machines = section(written[0], "versions-and-hardware")
    assert len(re.findall(r" jax \d", machines)) == 2
    assert machines.count("did not note") == 0


def test_pictures_are_val_images_with_their_truth_and_every_prediction(written, records):
    shown = pictures(section(written[0], "predictions"))
    assert len(shown) == 5 * 6
    val = load_shapes(num_labeled=3, num_unlabeled=5, num_val=5).val
    [different] = reporting.choose_images(records, val.ids, 2)["different"]
    for row, index in enumerate((different, 1, 3, 0, 4)):  # then the worst, the best, and the ends of the list
        image, truth, *others = shown[6 * row : 6 * row + 6]
        assert np.abs(image[2].astype(int) - val.read_image(index)).mean() < 8  # JPEG
        np.testing.assert_array_equal(truth[2], PALETTE[val.read_mask(index)])
        assert [alt for _, alt, _ in others] == [
            f"{kind} of {record.name}, {val.ids[index]}" for record in records for kind in ("overlay", "prediction")
        ]
        for (_, _, overlay), (_, _, mask) in zip(others[::2], others[1::2], strict=True):
            assert {tuple(color) for color in mask.reshape(-1, 3)} <= {tuple(color) for color in PALETTE[:7]}
            half = np.where((mask == 0).all(-1, keepdims=True), image[2], mask // 2 + image[2] // 2)
            assert np.abs(overlay.astype(int) - half).mean() < 12


def test_more_images_than_there_are_show_each_once_in_its_group(records):
    shown = reporting.make_pictures(records, 100)
    assert [picture.name for picture in shown if picture.group == "spread"] == [f"val_{i:05d}" for i in range(5)]
    assert [picture.group for picture in shown][:4] == ["different", "worst", "best", "spread"]


def test_ignored_pixels_are_grey_in_every_mask_and_not_counted(records):
    truth = np.zeros((8, 6), np.int32)
    truth[:4], truth[4:6] = 255, 1
    wrong, right = np.full((8, 6), 3), np.where(truth == 255, 2, truth)
    right[4] = 0  # 6 of 24 counted pixels
    page = report_page.render(records, [reporting.Picture("x", np.zeros((8, 6, 3), np.uint8), truth, [wrong, right])])
    assert "<figcaption>0.0 % right, mIoU 0.0</figcaption>" in page
    assert f"<figcaption>75.0 % right, mIoU {(100 * 6 / 12 + 100 * 12 / 18) / 2:.1f}</figcaption>" in page
    masks = [pixels for kind, _, pixels in pictures(page) if kind == "mask"]
    for pixels in masks:
        assert np.all(pixels[:4] == pixels[:4, :, :1])
        assert pixels[:4].min() > 128
    np.testing.assert_array_equal(masks[1][4:], np.broadcast_to(PALETTE[3], (4, 6, 3)))


def test_large_pictures_are_shrunk_in_proportion(records):
    size = (800, 600)
    ids = np.ones(size, np.int64)
    page = report_page.render(records, [reporting.Picture("x", np.zeros((*size, 3), np.uint8), ids, [ids, ids])])
    assert {pixels.shape for _, _, pixels in pictures(page)} == {(384, 288, 3)}


def test_a_page_of_many_large_noisy_images_stays_below_its_limit(records):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (192, 384, 3), dtype=np.uint8)
    ids = rng.integers(0, 7, image.shape[:2], dtype=np.uint8)
    page = report_page.smallest(records, [reporting.Picture("x", image, ids, [ids, ids])] * 20, {})
    assert 1_000_000 < len(page) < 5_000_000
    assert max(pixels.shape[1] for _, _, pixels in pictures(page.decode())) < 384


def test_negatives_are_those_that_the_run_draws(written, records):
    body = section(written[0], "drawn-negatives")
    captions = [alt.partition(" of ")[0] for _, alt, _ in pictures(body)]
    assert captions == ["weak view", "predicted", "different_image_pseudo_label", "uniform"] * 2
    assert "effective" in body
    assert "baseline" not in body
    assert section(report_page.render(records, [], {"tiny": "Left out: <b>."}), "drawn-negatives").endswith(
        "<p>Left out: &lt;b&gt;.</p>"
    )


def test_negatives_that_cannot_be_drawn_are_a_sentence(report_runs, tmp_path):
    copy = shutil.copytree(report_runs[1], tmp_path / "copy")
    record = reporting.read_records([copy])[0]
    record.run.config.data.num_unlabeled = 4
    assert "has changed" in report_gallery.draw_negatives(record)
    record.run.config.data.dataset = "folder"
    record.run.config.data.root = str(tmp_path / "gone")
    assert re.fullmatch(r"Left out, because .* cannot be read: .*gone.*\.", report_gallery.draw_negatives(record))
    record.run.config.loss.contrast_weight = 0.0
    assert "trained without" in report_gallery.draw_negatives(record)


def test_pictures_of_another_val_list_are_refused(report_runs, tmp_path):
    copy = shutil.copytree(report_runs[1], tmp_path / "copy")
    stored_results.edit(copy / "config.json", lambda config: config["data"].update(num_val=4))
    records = reporting.read_records([copy])
    with pytest.raises(UserError, match=r"val images has changed since .*5 images then, 4 now, .*--images=0"):
        reporting.make_pictures(records, 1)
    assert reporting.make_pictures(records, 0) == []


def test_page_is_self_contained_well_formed_markup(written):
    tags = parsed(written[0])
    assert {"svg", "img", "table"} <= tags.seen
    assert not tags.seen & {"script", "link", "iframe"}
    for name, value in tags.attributes:
        assert name != "href" or value.startswith("#")
        assert name != "src" or re.match("data:image/(png|jpeg);base64,", value)
        assert name not in ("onload", "onclick", "onerror", "srcset")
    assert not re.search(r"https?:|@import|url\(", written[0].replace("http://www.w3.org/2000/svg", ""))


def test_names_are_escaped(records):
    nasty = '<script>alert("1")</script>&'
    hostile = []
    for record in records:
        names = (nasty, *record.run.info.class_names[1:])
        per_class = {key: dict(zip(names, record.last[key].values(), strict=True)) for key in ("iou", "boundary_iou")}
        run = record.run._replace(info=record.run.info._replace(class_names=names))
        first = f"share/{record.run.info.class_names[0]}"
        metrics = [
            json.loads(json.dumps(line).replace(first, f"share/{nasty}".replace('"', '\\"'))) for line in record.metrics
        ]
        starts = [{"step": 0, "started": nasty, "hardware": nasty, "versions": {nasty: nasty}}]
        config = record.config | {"data.root": nasty}
        hostile.append(
            record._replace(name=nasty, run=run, last=record.last | per_class, metrics=metrics + starts, config=config)
        )
    image = np.zeros((4, 4, 3), np.uint8)
    ids = np.zeros((4, 4), np.int64)
    scene = {nasty: report_gallery.Negatives({nasty: [image]}, nasty)}
    page = report_page.render(hostile, [reporting.Picture(nasty, image, ids, [ids, ids])], scene)
    assert "script" not in parsed(page).seen
    assert nasty not in page
    assert page.count("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;") > 30


def test_the_best_value_is_emphasised_where_values_differ_as_shown():
    assert report_markup.emphasised([1.0, None, 2.0]) == ["1.00", "absent", "<b>2.00</b>"]
    assert report_markup.emphasised([2.001, 2.002]) == ["2.00", "2.00"]
    assert report_markup.emphasised([2.0]) == ["2.00"]


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
        for small in (False, True):
            svg = line_chart("x", ["a", "b"][: len(curves)], curves, small=small)
            assert svg.count("<circle") == len(curves[0])
            assert "nan" not in svg


def test_long_curves_are_means_of_neighbours():
    long = [(step, float(step % 2)) for step in range(1, 1202)]
    short = thinned(long)
    assert len(short) <= 300
    assert (short[0], short[-1][0]) == ((5, 0.6), 1201)
    assert thinned(long[:300]) == long[:300]


def test_shares_are_stacked_to_the_whole():
    svg = area_chart("x", ["a", "b"], ["red", "blue"], [[(0, 0.25), (8, 0.5)], [(0, 0.75), (8, 0.5)]], [0.1, 0.9])
    lower, upper = (
        np.array([point.split(",") for point in points.split()], float)
        for points in re.findall('<polygon class="area" points="([^"]+)"', svg)
    )
    floor, top = lower[0, 1], upper[2, 1]
    heights = (floor - lower[[3, 2], 1]) / (floor - top)
    np.testing.assert_allclose(heights, [0.25, 0.5], atol=2e-3)
    np.testing.assert_allclose(upper[2:, 1], top)
    assert "b: 90.0 % of val" in svg


def test_reliability_is_accuracy_over_confidence_and_leaves_empty_bins_out():
    bins = [
        {"low": 0.0, "high": 0.5, "share": 0.0, "confidence": None, "accuracy": None},
        {"low": 0.5, "high": 1.0, "share": 1.0, "confidence": 0.75, "accuracy": 0.5},
    ]
    svg = reliability_chart(["run"], [bins])
    ((x, y),) = np.array(re.findall(r'<circle class="s0" cx="([\d.]+)" cy="([\d.]+)"', svg), float)
    (x0, y0, x1, y1) = map(float, re.search(r'class="diagonal" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', svg).groups())
    np.testing.assert_allclose([(x - x0) / (x1 - x0), (y - y0) / (y1 - y0)], [0.75, 0.5], atol=1e-3)
    assert "100.0 % of the pixels, 75.0 % sure, 50.0 % right" in svg
