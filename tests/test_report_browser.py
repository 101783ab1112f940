"""Reports in a real browser: nothing is missing, nothing is fetched, nothing sticks out, on a phone and on a desk."""

import browser
import numpy as np
import pytest

from pc2seg_jax import report_page, reporting

LARGEST = 5_000_000


@pytest.fixture(scope="session")  # as the runs are, which are then not trained where there is no browser
def page(tmp_path_factory):
    with browser.opened(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(scope="module")
def reports(report_runs, tmp_path_factory):
    """A report of one run and one of two, as the command writes them by default."""
    folder = tmp_path_factory.mktemp("reports")
    one, _ = report_page.write_report(report_runs[1:], folder / "one run.html", 8)
    both, _ = report_page.write_report(report_runs, folder / "comparison.html", 8)
    return {"one": one, "comparison": both, "names": _with_long_names(report_runs, folder / "names.html")}


def _with_long_names(workdirs, path):
    """Seven runs with paths as names, whose classes have names without a place to break them."""
    record = reporting.read_records(workdirs[1:])[0]
    names = tuple(f"{'Unterwasserfahrzeug' * 2}_{i}" for i in range(7))
    changed = {key: dict(zip(names, record.last[key].values(), strict=True)) for key in ("iou", "boundary_iou")}
    info = record.run.info._replace(class_names=names)
    record = record._replace(run=record.run._replace(info=info), last=record.last | changed)
    records = [record._replace(name=f"/somewhere/in_a/bucket/{'experiment_' * 5}{i}") for i in range(7)]
    image, ids = np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8)
    path.write_text(report_page.render(records, [reporting.Picture("photo_" * 12, image, ids, [ids] * 7)]))
    return path


def complaints(page):
    """What the console shows as a warning or an error, and exceptions."""
    found = []
    for method, values in page.events:
        if method == "Log.entryAdded" and values["entry"]["level"] in ("warning", "error"):
            found.append(values["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("warning", "error", "assert"):
            found.append(str(values["args"]))
        elif method == "Runtime.exceptionThrown":
            found.append(str(values["exceptionDetails"]))
    return found


def requests(page):
    """Addresses that were asked for, besides what is written inside of the page."""
    asked = [values["request"]["url"] for method, values in page.events if method == "Network.requestWillBeSent"]
    return [url for url in asked if not url.startswith("data:")]


@pytest.mark.parametrize("name", ["one", "comparison", "names"])
@pytest.mark.parametrize(("width", "dark"), [(375, False), (375, True), (1280, False), (1280, True)])
def test_a_report_opens_whole(page, reports, name, width, dark):
    page.show(reports[name], width, dark=dark)
    page.value("document.querySelectorAll('details').forEach(part => part.open = true)")
    page.value("Promise.all([...document.images].map(image => image.decode()))")
    assert page.value("document.images.length") >= 16
    assert page.value("[...document.images].filter(image => !(image.complete && image.naturalWidth > 0)).length") == 0
    assert page.value("document.documentElement.scrollWidth") <= page.value("window.innerWidth") == width
    assert page.value("[...document.querySelectorAll('svg')].every(svg => svg.getBoundingClientRect().width > 100)")
    light = page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light is not dark
    assert requests(page) == [reports[name].resolve().as_uri()]
    assert complaints(page) == []
    assert reports[name].stat().st_size < LARGEST


def test_what_is_wide_scrolls_in_its_own_box(page, reports):
    """The page has such boxes at all: with everything as wide as the phone, the test above would prove little."""
    page.show(reports["comparison"], 375)
    wide = "[...document.querySelectorAll('.wide')].filter(box => box.scrollWidth > box.clientWidth)"
    assert page.value(f"{wide}.length") > 0
    assert page.value(f"{wide}.every(box => box.getBoundingClientRect().right <= innerWidth)")


def test_letters_are_large_enough_to_read_on_a_phone(page, reports):
    page.show(reports["comparison"], 375)
    sizes = """[...document.querySelectorAll('svg')].map(svg => {
        const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
        return Math.min(...[...svg.querySelectorAll('text')].map(t => parseFloat(getComputedStyle(t).fontSize) * scale))
    })"""
    assert min(page.value(sizes)) >= 8


def test_the_test_itself_would_see_a_page_that_is_not_whole(page, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text(
        '<!doctype html><meta charset="utf-8"><img src="gone.png"><div style="width: 2000px">x</div>'
        "<script>console.error('something is wrong')</script>"
    )
    page.show(path, 375)
    assert len(complaints(page)) == 2
    assert requests(page) == [path.as_uri(), (tmp_path / "gone.png").as_uri()]
    assert page.value("document.images[0].naturalWidth") == 0
    assert page.value("document.documentElement.scrollWidth") > page.value("window.innerWidth")
