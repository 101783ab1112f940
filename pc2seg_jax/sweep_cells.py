"""The cells of a sweep: configurations around one base, from grids on the command line or from a file."""

import ast
import hashlib
import itertools
import pathlib
import re
import runpy
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections

from pc2seg_jax import config as config_lib
from pc2seg_jax.errors import UserError
from pc2seg_jax.validation import validate

LONGEST_NAME = 120  # characters of a folder's name before the seed

Changes = dict[str, Any]  # dotted key: value


class Cell(NamedTuple):
    """A run of a sweep. folder: its name in the root. config: the whole configuration, seed included."""

    folder: str
    config: ml_collections.ConfigDict


class Row(NamedTuple):
    """A label of a sweep. changes: what differs from the base. paper: mIoU in % or None. cells: one per seed."""

    label: str
    changes: Changes
    paper: float | None
    cells: tuple[Cell, ...]


class Sweep(NamedTuple):
    """What to sweep. paper: {label: mIoU in % or None}. baseline: the label that the others are compared with."""

    cells: dict[str, Changes]
    paper: dict[str, float | None]
    baseline: str


def measured(c: ml_collections.ConfigDict, cells: dict[str, Changes]) -> dict[str, Changes]:
    """Cells of the method that read the masks of unlabelled images, where a dataset has them, for measuring only.

    All files of configs/sweeps/ call this, so that their equal cells are shared. A folder's masks are read only where
    the base says so.
    """
    added = {"objective": "pc2seg"} | ({"data.unlabeled_masks": True} if c.data.dataset != "folder" else {})
    return {label: changes if "objective" in changes else added | changes for label, changes in cells.items()}


def _fitted(value: Any, like: Any) -> Any:
    """`value` in the type of `like`, whole numbers also as float; elements of tuples alike."""
    if isinstance(like, float) and type(value) is int:
        return float(value)
    if isinstance(like, tuple) and isinstance(value, tuple | list):
        return tuple(_fitted(x, like[0]) if like else x for x in value)
    if type(value) is not type(like):
        raise TypeError
    return value


def apply(base: ml_collections.ConfigDict, changes: Changes) -> ml_collections.ConfigDict:
    """A copy of `base` with other values.

    Raises:
      UserError: naming the key that does not exist, or whose value is of another type.
    """
    flat = config_lib.flatten(base)
    fitting = {}
    for key, value in changes.items():
        if key == "seed":
            raise UserError("config.seed is not swept as a key: set the number of seeds with --seeds")
        if key not in flat:
            raise config_lib.no_such_key(key)
        try:
            fitting[key] = _fitted(value, flat[key])
        except TypeError:
            kind = type(flat[key]).__name__
            raise UserError(f"config.{key} cannot be {value!r}: expected a {kind} such as {flat[key]!r}") from None
    config = base.copy_and_resolve_references()
    config.update_from_flattened_dict(fitting)
    return config


def parse_grid(text: str, base: ml_collections.ConfigDict) -> tuple[str, list]:
    """("loss.window", [0, 100]) from "config.loss.window=0,100"; commas inside brackets and quotes do not separate.

    Raises:
      UserError: when the text is of another form, or a key or value does not fit the configuration.
    """
    key, equals, listed = text.removeprefix("config.").partition("=")
    words = re.findall(r"""(?:\([^()]*\)|\[[^\[\]]*\]|'[^']*'|"[^"]*"|[^,])+""", listed)
    if (
        not text.startswith("config.")
        or not equals
        or not words
        or ",".join(words) != listed
        or not all(map(str.strip, words))
    ):
        raise UserError(f"--grid={text} is not of the form config.key=value,value,... (an empty text is written '')")
    old = config_lib.flatten(base).get(key)
    values = []
    for word in map(str.strip, words):
        try:
            value = ast.literal_eval(word.capitalize() if isinstance(old, bool) else word)
        except (ValueError, SyntaxError):
            value = word
        if isinstance(old, str) and not isinstance(value, str):  # 1_8 is a list's name, and a number to Python
            value = word
        values.append(config_lib.flatten(apply(base, {key: value}))[key])
    if len(set(values)) < len(values):
        raise UserError(f"--grid={text} names a value twice")
    return key, values


def load_grid(grids: Sequence[str], base: ml_collections.ConfigDict) -> Sweep:
    """The product of several grids; its first cell is the baseline.

    Raises:
      UserError: see `parse_grid`; and when a key is in two grids.
    """
    parsed = [parse_grid(text, base) for text in grids]
    keys = [key for key, _ in parsed]
    if len(set(keys)) < len(keys):
        raise UserError(f"--grid names a key twice ({', '.join(keys)}): write all of its values in one --grid")
    cells = [dict(zip(keys, values, strict=True)) for values in itertools.product(*(values for _, values in parsed))]
    named = {", ".join(f"{key}={as_text(value)}" for key, value in cell.items()): cell for cell in cells}
    return Sweep(named, {}, next(iter(named)))


def load_sweep(path: pathlib.Path, base: ml_collections.ConfigDict) -> Sweep:
    """A sweep file: its `get_cells(base)`, its `PAPER` and its `BASELINE`, by default none and the first cell.

    Raises:
      UserError: when the file cannot be run, or does not return cells.
    """
    if not path.is_file():
        raise UserError(f"--sweep={path} is not a file: name one of configs/sweeps/, or your own")
    try:
        module = runpy.run_path(str(path))
        cells = module["get_cells"](base.copy_and_resolve_references())
    except Exception as error:  # the file is the user's and may raise anything
        raise UserError(f"--sweep={path} cannot be used: {type(error).__name__}: {error}") from error
    if not isinstance(cells, dict) or not cells or not all(isinstance(changes, dict) for changes in cells.values()):
        raise UserError(f"--sweep={path} must return {{label: {{key: value}}}} with a cell or more from get_cells(c)")
    paper = module.get("PAPER", {})
    if strange := sorted(paper.keys() - cells.keys()):
        raise UserError(f"--sweep={path} has PAPER numbers for what is no label of its cells: {', '.join(strange)}")
    baseline = module.get("BASELINE", next(iter(cells)))
    if baseline not in list(cells):
        raise UserError(f"--sweep={path} has the BASELINE {baseline!r}, which is no label of its cells")
    return Sweep(cells, paper, baseline)


def as_text(value: Any) -> str:
    """A value in labels and names of folders: ('conv5', 'encoder') is conv5+encoder."""
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def folder_name(changes: Changes, seed: int) -> str:
    """'loss.window=100__seed=0'; with a hash where characters or the length do not suit a file system."""
    exact = "__".join(f"{key}={as_text(value)}" for key, value in sorted(changes.items())) or "base"
    safe = re.sub(r"[^A-Za-z0-9._=+-]", "-", exact)
    if safe != exact or len(safe) > LONGEST_NAME:
        safe = f"{safe[: LONGEST_NAME - 9]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"
    return f"{safe}__seed={seed}"


def make_rows(
    base: ml_collections.ConfigDict,
    sweep: Sweep,
    *,
    seeds: int,
    choices: dict[str, tuple[str, ...]],
) -> list[Row]:
    """Rows of a sweep with a cell for each of the seeds base.seed, base.seed + 1, ...

    Args:
      choices: see `validation.validate`, which every cell must pass.

    Raises:
      UserError: naming the cell that cannot be run, and why.
    """
    flat, rows = config_lib.flatten(base), []
    for label, wanted in sweep.cells.items():
        try:
            config = apply(base, wanted)
            changes = {key: value for key, value in config_lib.flatten(config).items() if value != flat[key]}
            made = []
            for seed in range(base.seed, base.seed + seeds):
                seeded = config.copy_and_resolve_references()
                seeded.seed = seed
                validate(seeded, choices)
                made.append(Cell(folder_name(changes, seed), seeded))
        except UserError as error:
            raise UserError(f"cell {label!r} of the sweep cannot be run: {error}") from error
        rows.append(Row(label, changes, sweep.paper.get(label), tuple(made)))
    return rows
