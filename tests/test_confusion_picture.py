"""The picture of a confusion matrix: a well-formed document whose numbers are the row's percentages."""

import re
import xml.etree.ElementTree

import numpy as np
import pytest

from pc2seg_jax.confusion_picture import confusion_svg

SPACE = "{http://www.w3.org/2000/svg}"


def texts(svg):
    root = xml.etree.ElementTree.fromstring(svg)
    return root, [element[0].tail if len(element) else element.text for element in root.iter(f"{SPACE}text")]


def test_cells_are_percentages_of_their_row():
    confusion = np.array([[90, 9, 1], [0, 0, 0], [1, 0, 299]])
    root, shown = texts(confusion_svg(confusion, ["sky", "tree", "road"]))
    cells = {path.find(f"{SPACE}title").text: path for path in root.iter(f"{SPACE}path") if len(path)}
    assert list(cells) == [
        "sky found: 90.0 %, 90 pixels",
        "sky taken for tree: 9.0 %, 9 pixels",
        "sky taken for road: 1.0 %, 1 pixels",
        "road found: 99.7 %, 299 pixels",
    ]
    assert [path.get("fill-opacity") for path in cells.values()] == ["0.90", "0.09", "0.01", "1.00"]
    assert {"90", "9", "1", "100"} <= set(shown)
    assert [text for text in shown if re.fullmatch(r"\d+\.\d|–", text)] == ["25.0", "–", "75.0"]


def test_it_is_complete_without_a_page():
    svg = confusion_svg(np.eye(3, dtype=np.int64), ["a", "b", "c"])
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert not re.search(r"var\(--[\w-]+\)", svg), "every variable has a colour for where there is no page"
    root, _ = texts(svg)
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"


@pytest.mark.parametrize("count", [1, 2, 24, 25, 81])
def test_any_number_of_classes_with_any_names(count):
    names = [f'<b>&"{i} of a name that is long' for i in range(count)]
    root, shown = texts(confusion_svg(np.ones((count, count), np.int64), names))
    assert sum(text == f"{100 / count:.0f}" for text in shown) == count**2
    assert "<b>" not in confusion_svg(np.zeros((count, count), np.int64), names)
    assert max(len(text) for text in shown if text.startswith("<b>")) == 18
    assert float(root.get("width")) >= 300


def test_a_matrix_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"of 2 classes is \[2, 2\], not \[3, 3\]"):
        confusion_svg(np.eye(3), ["a", "b"])
