"""The house rules, read from the source: imports only go down, and every library has its place."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "pc2seg_jax"
COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "export",
    "pretrain",
    "report",
    "export_shapes",
    "fixture",
    "convert",
    "compile_tpu",
    "prepare",
    "check_data",
    "sweep",
    "show",
)

# A module imports from the layers above its own line only. `ops`, `models` and `data` are folders: inside one, modules
# import one another freely.
LAYERS = (
    ("__init__", "errors", "types", "resize", "chips", "flops"),
    ("files", "surroundings", "confusion_picture", "gpus", "programs"),
    ("config", "parallel", "processes", "profiling", "downloads", "storage_noise", "exported"),
    ("ops", "models", "data", "recipes", "validation", "streams"),
    ("objective", "optim", "checkpoints", "writers", "workdir", "weights", "bootstrap"),
    ("inference", "saved_model", "onnx_graph"),
    ("step", "any_size", "onnx_primitives"),
    ("build", "onnx_file"),
    ("evaluation", "restoring", "failures", "compile_report"),
    ("initialization",),
    ("prediction", "training", "exporting"),
    ("evaluating", "comparison", "mask_files", "segmenter"),
    ("cli", "seeds", "reporting", "report_chart", "data_report", "contact_sheet", "sweep_cells"),
    ("report_markup", "report_style", "loss_pictures", "sweeping"),
    ("report_curves", "report_gallery", "report_tables", "sweep_report"),
    ("report_page",),
    (*COMMANDS, "run_stablehlo"),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
LEAVES = {"__init__", "errors", "types", "resize", "files", "downloads"}

# The only places that import a library; what is not listed is free.
HOMES = {
    "tensorflow": {"data", "saved_model"},
    "onnx": {"onnx_graph", "onnx_primitives", "onnx_file"},
    "onnxruntime": {"onnx_file"},
    "safetensors": {"weights"},
    "pooch": {"downloads"},
    "tensorflow_datasets": {"data"},
    "array_record": {"data"},
    "cv2": {"data"},
    "flax": {"models"},
    "orbax": {"checkpoints"},
    "tensorboardX": {"writers"},
    "absl": {"cli", *COMMANDS},
}
FORBIDDEN = {
    "data": {"jax", "flax", "optax", "orbax", "ml_collections"},
    "ops": {"flax", "optax", "tensorflow", "PIL", "ml_collections", "pathlib", "os"},
    "models": {"tensorflow", "optax", "PIL", "ml_collections"},
}

FILES = sorted(PACKAGE.rglob("*.py"))
PYTHON = [path for folder in ("pc2seg_jax", "configs", "tests", "launch") for path in (ROOT / folder).rglob("*.py")]


def part(path):
    """'ops' for a file of a folder, else the module's name. A command may live in the folder it shows."""
    inside = path.relative_to(PACKAGE).parts
    return inside[0] if len(inside) > 1 and path.stem not in COMMANDS else path.stem


def imports(path):
    """Full dotted names of everything that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path):
    """Parts of the package that a file imports; importing the package itself is importing `__init__`."""
    for name in imports(path):
        first, *rest = name.split(".")
        if first == "pc2seg_jax":
            yield rest[0] if rest and rest[0] in LEVELS else "__init__"


def libraries(path):
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    assert part(path) in LEVELS, f"{path} has no layer: give it one"
    own = part(path)
    if own == "__init__":  # offers, when asked, what is for other programs
        assert set(own_imports(path)) <= {"segmenter"}
        return
    inside_folder = path.parent != PACKAGE
    for imported in own_imports(path):
        if not (inside_folder and imported == own):
            assert LEVELS[imported] < LEVELS[own], f"{path.name} imports {imported}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_library_has_its_place(path):
    for library in libraries(path):
        assert part(path) in HOMES.get(library, {part(path)}), f"{path} imports {library}"
        assert library not in FORBIDDEN.get(part(path), ()), f"{path} imports {library}"


def test_ops_models_and_data_know_neither_configurations_nor_meshes():
    for path in FILES:
        if part(path) in ("ops", "models", "data"):
            assert set(own_imports(path)) <= {part(path), *LEAVES}, path


def test_data_stays_off_jax_through_what_it_imports():
    for path in FILES:
        if part(path) == "data":
            for imported in set(own_imports(path)) - {"data"}:
                assert "jax" not in libraries(PACKAGE / f"{imported}.py"), f"{path} imports {imported}"


def test_every_layer_exists():
    assert {part(path) for path in FILES} == LEVELS.keys()


def test_no_file_is_a_drawer_for_everything():
    assert not [path for path in PYTHON if path.name.startswith(("util", "helper", "misc", "common"))]


def test_files_and_functions_stay_readable():
    long = [path for path in PYTHON if len(path.read_text().splitlines()) > 350]
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 85:
                long.append(f"{path}: {node.name}")
    assert not long
