"""Cells, grids and tables of sweeps, and the files of configs/sweeps/ with the paper's own values."""

import pathlib
import re
import runpy
import xml.etree.ElementTree

import pytest

from pc2seg_jax import build, seeds, sweep_cells, sweep_report
from pc2seg_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "configs" / "sweeps").glob("*.py"))
HEAD = {"configuration": "base.py", "overrides": {}, "steps": 6, "versions": {"jax": "1"}, "hardware": "none"}


def test_grids_are_multiplied_and_values_take_the_type_of_their_key(tiny_config):
    grids = ["config.loss.contrast_weight=0,0.1,0.3", "config.model.contrast_layers=('conv5','encoder'),('conv5',)"]
    cells, paper, baseline = sweep_cells.load_grid(grids, tiny_config())
    weights, layers = (0.0, 0.1, 0.3), (("conv5", "encoder"), ("conv5",))
    expected = [{"loss.contrast_weight": w, "model.contrast_layers": x} for w in weights for x in layers]
    assert list(cells.values()) == expected
    assert all(type(cell["loss.contrast_weight"]) is float for cell in cells.values())
    assert next(iter(cells)) == baseline == "loss.contrast_weight=0.0, model.contrast_layers=conv5+encoder"
    assert paper == {}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("config.steps=4,8", [4, 8]),
        ("config.model.remat=true,False", [True, False]),
        ("config.data.labeled=1_8,every 1/8 with seed 0,'a,b.txt',''", ["1_8", "every 1/8 with seed 0", "a,b.txt", ""]),
        ("config.augment.scales=(1, 2),(0.5,)", [(1.0, 2.0), (0.5,)]),
        ("config.eval.mean_without=(),('sky',)", [(), ("sky",)]),
        ("config.optim.weight_decay=1e-4, 1", [1e-4, 1.0]),
    ],
)
def test_values_of_a_grid(tiny_config, text, values):
    key, found = sweep_cells.parse_grid(text, tiny_config())
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]
    assert f"config.{key}" == text.partition("=")[0]


WRONG_GRIDS = [
    (["config.loss.contrast_wight=1"], ["config.loss.contrast_wight", "config.loss.contrast_weight"]),
    (["config.loss=1"], ["no key config.loss"]),
    (["config.steps=4,many"], ["config.steps", "'many'", "int"]),
    (["config.steps=True"], ["config.steps", "True", "int"]),
    (["config.model.contrast_layers=conv5"], ["contrast_layers", "tuple", "('conv5',)"]),
    (["config.augment.crop_size=('a','b')"], ["crop_size"]),
    (["config.model.remat=1"], ["remat", "bool"]),
    (["config.steps="], ["config.steps=", "config.key=value"]),
    (["config.steps"], ["config.key=value"]),
    (["steps=1"], ["config.key=value"]),
    (["config.steps=4,,8"], ["config.key=value"]),
    (["config.steps=4,4"], ["twice"]),
    (["config.steps=4", "config.steps=8"], ["twice", "steps"]),
    (["config.seed=1,2"], ["--seeds"]),
    (["config.steps=4,-1"], ["'steps=-1'", "expected a positive number"]),
]


@pytest.mark.parametrize(("grids", "words"), WRONG_GRIDS)
def test_wrong_grids_end_in_one_sentence(tiny_config, grids, words):
    def rows(base):
        return sweep_cells.make_rows(base, sweep_cells.load_grid(grids, base), seeds=1, choices=build.CHOICES)

    with pytest.raises(UserError) as error:
        rows(tiny_config())
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_sweep_files_that_cannot_be_used_are_named(tmp_path, tiny_config):
    path = tmp_path / "mine.py"
    for text, word in (
        (None, "not a file"),
        ("1 +", "SyntaxError"),
        ("x = 1", "get_cells"),
        ("def get_cells(c):\n    return {}", "must return"),
        ("def get_cells(c):\n    return c.nothing", "nothing"),
        ("PAPER = {'b': 1}\ndef get_cells(c):\n    return {'a': {}}", "b"),
        ("BASELINE = 'b'\ndef get_cells(c):\n    return {'a': {}}", "BASELINE 'b'"),
        ("BASELINE = ['a']\ndef get_cells(c):\n    return {'a': {}}", "BASELINE \\['a'\\]"),
    ):
        if text is not None:
            path.write_text(text)
        with pytest.raises(UserError, match=f"--sweep={path}.*{word}"):
            sweep_cells.load_sweep(path, tiny_config())
    path.write_text("PAPER = {'a': 3}\ndef get_cells(c):\n    c.steps = 1\n    return {'a': {'loss.delay': c.steps}}")
    base = tiny_config()
    assert sweep_cells.load_sweep(path, base) == ({"a": {"loss.delay": 1}}, {"a": 3}, "a")
    assert base.steps == 6


def test_folders_are_named_after_what_differs_from_the_base_and_the_seed(tiny_config):
    base = tiny_config(seed=4)
    cells = {"same": {"loss.contrast_weight": 0.3}, "other": {"steps": 4, "loss.window": 99}}
    rows = sweep_cells.make_rows(base, sweep_cells.Sweep(cells, {"same": 1.5}, "same"), seeds=2, choices={})
    assert [row.paper for row in rows] == [1.5, None]
    names = [cell.folder for row in rows for cell in row.cells]
    assert names == [
        "base__seed=4",
        "base__seed=5",
        "loss.window=99__steps=4__seed=4",
        "loss.window=99__steps=4__seed=5",
    ]
    assert [cell.config.seed for cell in rows[1].cells] == [4, 5]
    odd = [sweep_cells.folder_name({"data.labeled": text}, 0) for text in ("a/b", "a:b", "x" * 300, "x" * 301, "fine")]
    assert len(set(odd)) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9._=+-]{,140}", name) for name in odd)


def rows_of_a_table():
    def seed(number, miou, **more):
        return {"seed": number, "folder": f"f{number}", "failure": None, "miou": miou, **more}

    def row(label, runs, paper):
        mean = seeds.summarize([x["miou"] for x in runs if "miou" in x])
        empty = dict.fromkeys(("boundary_miou", "false_negative_rate", *sweep_report.COSTS))
        return empty | {
            "label": label,
            "changes": {},
            "paper": paper,
            "miou": mean,
            "best_miou": mean,
            "seeds": runs,
        }

    failed = {"seed": 0, "folder": "f", "failure": "exit status 1: a | b"}
    return [
        row("a / <x>", [seed(0, 50.0), seed(1, 52.0), seed(2, 54.0)], 64.63),
        row("a / y", [seed(0, 41.25)], None),
        row("b / y", [failed], None),
    ]


def test_the_table_reads_well():
    table = {"name": "t", **HEAD, "overrides": {"steps": 6}, "splits": {"val": []}, "rows": rows_of_a_table()}
    table["baseline"] = "a / <x>"
    text = sweep_report.markdown(table)
    assert "`base.py --config.steps=6`, 6 steps" in text
    assert "| last mIoU % | <x> | y |\n|---|---|---|\n| a | 52.00 ± 2.00 | 41.25 |\n| b |  | failed |" in text
    assert "| cell | differs in | last mIoU % | best mIoU % | seeds | paper mIoU % |" in text  # nothing else is known
    assert "| a / <x> | nothing | 52.00 ± 2.00 | 52.00 ± 2.00 | 3 | 64.63 |" in text
    assert "difference to" not in text
    table["rows"][1]["difference"] = {"miou": seeds.paired_difference([41.25], [50.0]), "boundary_miou": None}
    assert "| a / y | -8.75 | -8.75 | - |\n" in sweep_report.markdown(table)
    table["rows"][0]["label"] = "a|x"
    assert "last mIoU % | <x>" not in sweep_report.markdown(table)
    assert "| a\\|x | nothing |" in sweep_report.markdown(table)


def test_differences_are_of_the_seeds_that_both_cells_have_finished():
    base = [{"seed": 0, "miou": 40.0}, {"seed": 1, "failure": "killed"}, {"seed": 2, "miou": 46.0}]
    cell = [{"seed": 2, "miou": 47.0}, {"seed": 1, "miou": 50.0}, {"seed": 0, "miou": 44.0}]
    found = sweep_report._difference(cell, base, "miou")
    assert found["by_seed"] == [1.0, 4.0]
    assert (found["mean"], found["std"]) == (2.5, pytest.approx(3 / 2**0.5))
    half = 12.7062 * (3 / 2**0.5) / 2**0.5  # Student's t of one degree of freedom
    assert found["interval"] == pytest.approx([2.5 - half, 2.5 + half], rel=1e-4)
    assert sweep_report._difference(cell, base[1:2], "miou") is None
    assert seeds.difference_text(found) == "+2.50 ± 2.12 [-16.56, +21.56]"


def test_the_plot_has_a_row_per_label_a_dot_per_seed_and_a_bar_at_the_mean():
    rows = rows_of_a_table()
    svg = xml.etree.ElementTree.fromstring(sweep_report.chart({"rows": rows}))
    name = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in svg.iter(f"{name}text")]
    assert {"a / <x>", "a / y", "b / y", "failed"} <= set(texts)
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in svg.iter(f"{name}circle")]
    assert len(dots) == 4
    assert len({y for _, y in dots}) == 2
    ticks = {float(t.text): float(t.get("x")) for t in svg.iter(f"{name}text") if re.fullmatch(r"[\d.]+", t.text)}
    (v0, x0), (v1, x1) = sorted(ticks.items())[0], sorted(ticks.items())[-1]
    for (x, _), value in zip(dots, (50, 52, 54, 41.25), strict=True):
        assert v0 + (x - x0) / (x1 - x0) * (v1 - v0) == pytest.approx(value, abs=0.05)
    bars = [path.get("d") for path in svg.iter(f"{name}path") if path.get("stroke-width") == "2.5"]
    assert bars[0].startswith(f"M{dots[1][0]} ")
    assert len(bars) == 2
    width = float(svg.get("width"))
    assert all(0 <= float(x) <= width for x, _ in dots)


BASES = {
    "shapes": ("shapes.py", "study", {}),
    "voc": ("voc12.py", "r50,1_8", {}),
    "cityscapes": ("cityscapes.py", "", {}),
    "coco": ("coco.py", "", {}),
    "small": ("folder.py", "small", {"data.root": "mine", "data.unlabeled_masks": True}),
    "folder": ("folder.py", "default", {"data.root": "mine"}),
}


def base_of(name):
    file, variant, changes = BASES[name]
    config = runpy.run_path(str(ROOT / "configs" / file))["get_config"](variant)
    return sweep_cells.apply(config, changes)


def rows_of(path, base):
    return sweep_cells.make_rows(base, sweep_cells.load_sweep(path, base), seeds=1, choices=build.CHOICES)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_sweep_file_fits_every_configuration(path, name):
    base = base_of(name)
    if (path.stem, name) == ("table5", "folder"):
        with pytest.raises(UserError, match=r"cell 'oracle' .*--config\.data\.unlabeled_masks=true"):
            rows_of(path, base)
        return
    rows = rows_of(path, base)
    assert len({row.cells[0].folder for row in rows}) == len(rows)
    for row in rows:
        config = row.cells[0].config
        reads = config.objective == "pc2seg" and name != "folder"
        assert config.data.unlabeled_masks == (reads or base.data.unlabeled_masks)


def test_there_is_a_file_for_every_table():
    assert {path.stem for path in FILES} == {*(f"table{n}" for n in range(5, 12)), "table7_cross"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_cell_has_the_papers_number_which_stands_in_the_docstring(path):
    module = runpy.run_path(str(path))
    cells = module["get_cells"](base_of("voc"))
    assert list(cells) == list(module["PAPER"])
    for number in module["PAPER"].values():
        assert number is None or f"{number:.2f}" in module["__doc__"]
    assert f"--sweep=configs/sweeps/{path.name}" in module["__doc__"]


def on_voc(table):
    """{label: what differs from the base, without the masks that every cell reads}, and the numbers."""
    rows = rows_of(ROOT / "configs" / "sweeps" / f"{table}.py", base_of("voc"))
    changes = {
        row.label: {key: value for key, value in row.changes.items() if key != "data.unlabeled_masks"} for row in rows
    }
    return changes, {row.label: row.paper for row in rows}


def test_table_5_on_voc_is_the_papers():
    changes, paper = on_voc("table5")
    best = "different_image_pseudo_label"
    assert paper == {
        "uniform": 62.70,
        "different_image": 63.33,
        "pseudo_label": 64.38,
        best: 64.63,
        "oracle": 64.78,
    }
    assert changes == {name: {} if name == best else {"loss.strategy": name} for name in paper}


def test_table_6_on_voc_is_the_papers():
    changes, paper = on_voc("table6")
    counts = [row.get("loss.num_negatives", 200) for row in list(changes.values())[1:]]
    assert counts == [50, 100, 200, 400, 800, 1600]
    assert changes["none"] == {"loss.contrast_weight": 0.0}
    assert all(set(row) <= {"loss.num_negatives"} for row in list(changes.values())[1:])
    assert list(paper.values()) == [63.75, 64.08, 64.24, 64.63, 64.84, 65.03, None]


def test_table_7_on_voc_is_the_papers():
    changes, paper = on_voc("table7")
    one, two = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9), (0.0, 0.5, 0.7, 1.0, 1.2)
    numbers = """49.57 51.92 52.29 52.28 52.74 53.53 62.31 61.62 62.47 63.83 63.07 63.64 63.46 63.26 63.71 63.79 63.35
        63.43 63.75 63.60 64.63 64.48 62.55 63.15 61.33 64.48 64.30 64.16 63.08 63.03"""
    assert list(paper.values()) == [float(number) for number in numbers.split()]
    pairs = [
        (row.get("loss.contrast_weight", 0.3), row.get("loss.consistency_weight", 1.0)) for row in changes.values()
    ]
    assert pairs[1:] == [(x, y) for y in two for x in one][1:]
    assert next(iter(changes.values())) == {"objective": "supervised"}


def test_the_cross_of_table_7_is_a_part_of_it():
    whole, numbers = on_voc("table7")
    changes, paper = on_voc("table7_cross")
    assert changes == {label: whole[label] for label in changes}
    assert paper == {label: numbers[label] for label in paper}
    assert sorted(paper.values()) == sorted([63.75, 63.60, 64.63, 64.48, 62.55, 63.15, 49.57, 62.31, 63.46, 61.33])


def test_table_8_on_voc_is_the_papers():
    assert on_voc("table8") == (
        {"supervised": {"objective": "supervised"}, "consistency only": {"loss.contrast_weight": 0.0}, "PC2Seg": {}},
        {"supervised": 49.57, "consistency only": 63.21, "PC2Seg": 64.63},
    )


def test_table_9_on_voc_is_the_papers():
    changes, paper = on_voc("table9")
    none = {"loss.contrast_weight": 0.0}
    features = {
        "none": none,
        "image_contrast": {"loss.feature_loss": "image_contrast"},
        "pixel_consistency": {"loss.feature_loss": "pixel_consistency"},
        "pixel_contrast": {},
    }
    labels = {"cross_entropy": {"loss.label_loss": "cross_entropy"}, "cosine": {}}
    assert changes == {f"{x} / {y}": labels[x] | features[y] for x in labels for y in features}
    assert list(paper.values()) == [63.54, 60.41, 59.33, 58.47, 63.75, 62.49, 63.21, 64.63]


def test_table_10_on_voc_is_the_papers():
    changes, paper = on_voc("table10")
    layers = [("conv3",), ("conv4",), ("conv5",), ("encoder",), ("decoder",), ("conv5", "encoder")]
    assert [row.get("model.contrast_layers", ("conv5",)) for row in changes.values()] == layers
    assert list(paper.values()) == [60.70, 63.90, 64.63, 64.25, 63.74, 64.59]


def test_table_11_on_voc_is_the_papers():
    changes, paper = on_voc("table11")
    assert [row.get("loss.delay", 0) for row in changes.values()] == [0, 2_000, 4_000, 8_000, 12_000]
    assert list(paper.values()) == [64.63, 63.30, 62.67, 62.56, 62.50]


@pytest.mark.parametrize("name", ["shapes", "voc", "folder"])
def test_equal_cells_of_the_tables_are_shared(name):
    base = base_of(name)
    files = [path for path in FILES if (path.stem, name) != ("table5", "folder")]
    folders = {path.stem: {row.cells[0].folder for row in rows_of(path, base)} for path in files}
    method = "base__seed=0" if name == "folder" else "data.unlabeled_masks=True__seed=0"
    assert all(method in found for found in folders.values())
    supervised = "objective=supervised__seed=0"
    assert all(supervised in folders[table] for table in ("table7", "table7_cross", "table8"))
    consistency = method.replace("base__", "").replace("seed", "loss.contrast_weight=0.0__seed")
    assert all(consistency in folders[table] for table in ("table6", "table7", "table8", "table9"))
    assert len(set.union(*folders.values())) == (1 + 1 + 1) + 4 * (name != "folder") + 5 + 27 + 6 + 5 + 4


def test_on_shapes_the_values_are_the_same_multiples():
    base = base_of("shapes")
    found = {
        table: [row.cells[0].config for row in rows_of(ROOT / "configs" / "sweeps" / f"{table}.py", base)]
        for table in ("table6", "table7", "table11")
    }
    assert [config.loss.num_negatives for config in found["table6"][1:]] == [5, 10, 20, 40, 80, 160]
    assert [config.loss.contrast_weight for config in found["table7"][6:12]] == [0, 0.01, 0.03, 0.05, 0.07, 0.09]
    assert [config.loss.delay for config in found["table11"]] == [0, 80, 160, 320, 480]
