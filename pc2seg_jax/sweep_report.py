"""The table of a sweep as Markdown, JSON and a plot: a function of what the cells' folders hold."""

import contextlib
import html
import json
import math
import pathlib
import statistics
from typing import Any

from pc2seg_jax import bootstrap
from pc2seg_jax import workdir as workdir_lib
from pc2seg_jax.errors import UserError
from pc2seg_jax.seeds import difference_text, paired_difference, summarize, summary_text
from pc2seg_jax.sweep_cells import Cell, Row, as_text
from pc2seg_jax.sweeping import is_finished, read_evaluation

ROLES = ("labeled", "unlabeled", "val")
SCORES = ("miou", "boundary_miou")
COSTS = ("minutes", "images_per_second", "memory_gb")  # what another run of the same cell need not repeat
_ROW_HEIGHT, _LETTER, _PLOT_WIDTH, _TOP, _BOTTOM = 26, 7, 420, 12, 40


def _read_lines(path: pathlib.Path) -> list[dict[str, float]]:
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):  # a line cut off by a crash
            lines.append(json.loads(line))
    return lines


def measure(root: pathlib.Path, cell: Cell) -> dict[str, Any]:
    """What a finished cell has to tell; values in %, None for what was not measured.

    miou, boundary_miou: of the last step. best_miou: the highest of the run's evaluations. false_negative_rate: mean
    of the logged steps. minutes: of training alone. images_per_second: median of the logged steps.
    """
    folder = root / cell.folder
    results = [result for path in folder.glob("evaluation/*_val.json") if (result := read_evaluation(path))]
    best = max(results, key=lambda result: (result["miou"], result["checkpoint"]["step"]))
    last = read_evaluation(folder / "evaluation" / f"{cell.config.steps}_val.json")
    lines = [line for name in ("metrics", "timings") for line in _read_lines(folder / f"{name}.jsonl")]

    def logged(name: str) -> list[float]:  # contrast/false_negative_rate, or contrast_conv5/... and others
        found = [value for line in lines for key, value in line.items() if key.rpartition("/")[2] == name]
        return [value for value in found if math.isfinite(value)]

    false, seconds = logged("false_negative_rate"), logged("seconds")
    rates, memory = logged("images_per_second"), logged("memory_gb")
    return {
        "miou": last["miou"],
        "boundary_miou": last.get("boundary_miou"),
        "best_miou": best["miou"],
        "best_step": best["checkpoint"]["step"],
        "false_negative_rate": 100 * statistics.mean(false) if false else None,
        "minutes": seconds[-1] / 60 if seconds else None,
        "images_per_second": statistics.median(rates) if rates else None,
        "memory_gb": memory[-1] if memory else None,
    }


def _difference(seeds: list[dict], base: list[dict], name: str) -> dict[str, Any] | None:
    """Of one number, over the seeds that both cells have finished; they share images, order and start."""
    of_seed = {seed["seed"]: seed[name] for seed in base if name in seed}
    values = {seed["seed"]: seed[name] for seed in seeds if name in seed and seed["seed"] in of_seed}
    return paired_difference(list(values.values()), [of_seed[seed] for seed in values])


def make_table(rows: list[Row], root: pathlib.Path, failures: dict[str, str], head: dict[str, Any]) -> dict[str, Any]:
    """The table as it is stored: `head`, the lists of images, and every row with its seeds and their summary.

    Args:
      failures: {folder: why} of `sweeping.run`.
      head: with the label of the "baseline", which every other row's "difference" is to.
    """
    table = head | {"splits": {role: [] for role in ROLES}, "rows": []}
    for row in rows:
        seeds = []
        for cell in row.cells:
            seeds.append({"seed": cell.config.seed, "folder": cell.folder, "failure": failures.get(cell.folder)})
            if is_finished(root, cell):
                seeds[-1] |= measure(root, cell)
                for role, split in workdir_lib.load_info(root / cell.folder).splits.items():
                    if split._asdict() not in table["splits"][role]:
                        table["splits"][role].append(split._asdict())
        names = (*SCORES, "best_miou", "false_negative_rate", *COSTS)
        table["rows"].append(
            {
                "label": row.label,
                "changes": row.changes,
                "paper": row.paper,
                **{name: summarize([seed[name] for seed in seeds if seed.get(name) is not None]) for name in names},
                "seeds": seeds,
            }
        )
    (base,) = (row for row in table["rows"] if row["label"] == table["baseline"])
    for row in table["rows"]:
        if row is not base:
            row["difference"] = {name: _difference(row["seeds"], base["seeds"], name) for name in SCORES}
    return table


def _cost(summary: dict | None) -> str:
    return "-" if summary is None else f"{summary['mean']:.1f}"


def _columns(row: dict[str, Any]) -> dict[str, str]:
    count = sum("miou" in seed for seed in row["seeds"])
    failed = sum(seed["failure"] is not None for seed in row["seeds"])
    return {
        "cell": row["label"],
        "differs in": ", ".join(f"{key}={as_text(value)}" for key, value in row["changes"].items()) or "nothing",
        "last mIoU %": summary_text(row["miou"]) if count else "failed",
        "best mIoU %": summary_text(row["best_miou"]) if count else "failed",
        "last boundary mIoU %": summary_text(row["boundary_miou"]),
        "seeds": str(count) + (f", {failed} failed" if failed else ""),
        "false negatives %": summary_text(row["false_negative_rate"]),
        "minutes": _cost(row["minutes"]),
        "images/s": _cost(row["images_per_second"]),
        "memory GB": _cost(row["memory_gb"]),
        "paper mIoU %": "-" if row["paper"] is None else f"{row['paper']:.2f}",
    }


def _grid(lines: list[list[str]]) -> str:
    """Lines as a Markdown table, the first being its head."""
    texts = ["| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in line) + " |" for line in lines]
    return "\n".join([texts[0], "|" + "---|" * len(lines[0]), *texts[1:]])


def _pivot(rows: list[dict[str, Any]]) -> str | None:
    """Rows by columns, where every label is of the form 'row / column'."""
    cells = {tuple(row["label"].split(" / ")): summary_text(row["miou"]) if row["miou"] else "failed" for row in rows}
    if any(len(label) != 2 for label in cells):
        return None
    down, across = (list(dict.fromkeys(label[axis] for label in cells)) for axis in (0, 1))
    return _grid([["last mIoU %", *across], *([name, *(cells.get((name, x), "") for x in across)] for name in down)])


def _differences(table: dict[str, Any]) -> str | None:
    """What the cells differ by from the baseline, of those that have a seed in common with it."""
    lines = []
    for row in table["rows"]:
        miou, boundary = (row.get("difference", {}).get(name) for name in SCORES)
        if miou is not None:
            by_seed = ", ".join(f"{x:+.2f}" for x in miou["by_seed"])
            lines.append([row["label"], difference_text(miou), by_seed, difference_text(boundary)])
    if not lines:
        return None
    return _grid([[f"difference to {table['baseline']}", "mIoU", "by seed", "boundary mIoU"], *lines])


def markdown(table: dict[str, Any]) -> str:
    """The table for people. Columns that nothing fills are left out."""
    columns = [_columns(row) for row in table["rows"]]
    kept = [title for title in columns[0] if any(line[title] != "-" for line in columns)]
    failures = {seed["folder"]: seed["failure"] for row in table["rows"] for seed in row["seeds"] if seed["failure"]}
    overrides = "".join(f" --config.{key}={value}" for key, value in table["overrides"].items())
    lists = [
        f"- {role}: "
        + " or ".join(f"{split['name']}, {split['count']} images, sha256 {split['sha256'][:8]}" for split in splits)
        for role, splits in table["splits"].items()
        if splits
    ]
    parts = [
        f"# {table['name']}",
        "\n".join(
            [
                f"- configuration: `{table['configuration']}{overrides}`, {table['steps']} steps",
                *lists,
                "- versions: " + ", ".join(f"{name} {version}" for name, version in table["versions"].items()),
                f"- hardware: {table['hardware']}",
                "- mean ± sample standard deviation over the seeds; mIoU on val; false negatives: measured during "
                "training; minutes: of training alone, without compiling and evaluating; paper: on the paper's data",
                f"- differences: of the last step, seed by seed, with the {bootstrap.LEVEL} % interval of their mean "
                "(Student's t)",
            ]
        ),
        _pivot(table["rows"]),
        _grid([kept, *([line[title] for title in kept] for line in columns)]),
        _differences(table),
        "\n".join(f"- failed: `{folder}`: {failure}" for folder, failure in failures.items()),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def chart(table: dict[str, Any]) -> str:
    """An SVG of the last mIoU: a row per label, a dot per seed, a bar at the mean, a hollow diamond at the paper's."""
    rows = table["rows"]
    values = [[seed["miou"] for seed in row["seeds"] if "miou" in seed] for row in rows]
    shown = [x for row in values for x in row] + [row["paper"] for row in rows if row["paper"] is not None] or [0.0]
    step = next(size for size in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if max(shown) - min(shown) <= 6 * size or size == 20)
    first, last = math.floor(min(shown) / step), max(math.ceil(max(shown) / step), math.floor(min(shown) / step) + 1)
    left = _LETTER * max(len(row["label"]) for row in rows) + 20
    bottom = _TOP + _ROW_HEIGHT * len(rows)

    def across(value: float) -> float:
        return round(left + (value / step - first) / (last - first) * _PLOT_WIDTH, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + _PLOT_WIDTH + 30}" height="{bottom + _BOTTOM}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for tick in range(first, last + 1):
        x = across(tick * step)
        parts.append(f'<path d="M{x} {_TOP}V{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{bottom + 15}" text-anchor="middle">{round(tick * step, 1):g}</text>')
    caption = "val mIoU in %: dots are seeds, the bar is their mean" + ", the diamond the paper's" * any(
        row["paper"] is not None for row in rows
    )
    parts.append(f'<text x="{left + _PLOT_WIDTH / 2}" y="{bottom + 32}" text-anchor="middle">{caption}</text>')
    for index, (row, miou) in enumerate(zip(rows, values, strict=True)):
        y = _TOP + _ROW_HEIGHT * (index + 0.5)
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{html.escape(row["label"])}</text>')
        if row["paper"] is not None:
            x = across(row["paper"])
            parts.append(f'<path d="M{x} {y - 6}l6 6l-6 6l-6 -6z" fill="none" stroke="#b0532c" stroke-width="1.5"/>')
        for value in miou:
            parts.append(f'<circle cx="{across(value)}" cy="{y}" r="3.5" fill="#1f6fb2" fill-opacity="0.6"/>')
        if miou:
            mean = across(statistics.mean(miou))
            parts.append(f'<path d="M{mean} {y - 9}v18" stroke="#222" stroke-width="2.5"/>')
        else:
            parts.append(f'<text x="{left + 6}" y="{y + 4}" fill="#a00">failed</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def write(table: dict[str, Any], folder: pathlib.Path) -> pathlib.Path:
    """Writes <name>.json, .svg and .md, replacing those of an earlier call, and returns the last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{table['name']}.json").write_text(json.dumps(table, indent=2) + "\n")
    (folder / f"{table['name']}.svg").write_text(chart(table))
    (folder / f"{table['name']}.md").write_text(markdown(table))
    return folder / f"{table['name']}.md"


def check_output(folder: pathlib.Path) -> None:
    """Before anything is trained.

    Raises:
      UserError: when the folder cannot be one.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output={folder} is a file: name the folder that the table is written to")
