"""Methods side by side, each trained with several seeds: how far a difference moves with another training."""

from typing import NamedTuple

import numpy as np
import scipy.stats

from pc2seg_jax import bootstrap
from pc2seg_jax.comparison import Entry, check, text_table
from pc2seg_jax.errors import UserError
from pc2seg_jax.files import AnyPath, path_of

SCORES = {"miou": "mIoU", "boundary_miou": "boundary", "pixel_accuracy": "accuracy"}


class Method(NamedTuple):
    """The runs of one method. name: the pattern that found them. entries: by the seed that each was trained with."""

    name: str
    entries: dict[int, Entry]


def is_pattern(text: str) -> bool:
    """Whether this stands for several folders, rather than being one that has such a letter in its name."""
    return any(letter in text for letter in "*?[") and not path_of(text).exists()


def find_runs(pattern: str) -> list[AnyPath]:
    """The folders of runs that a pattern such as runs/pc2seg_* names, in the order of their names.

    Raises:
      UserError: when there are none.
    """
    path = path_of(pattern)
    if is_pattern(str(path.parent)):
        raise UserError(f"--compare: {pattern} has a wildcard before its last part, expected one such as runs/pc2seg_*")
    found = sorted(path.parent.glob(path.name)) if is_pattern(pattern) else [path]
    runs = [folder for folder in found if (folder / "config.json").is_file()]
    if not runs:
        raise UserError(f"--compare: no folder that {pattern} names is that of a run: it would hold config.json")
    return runs


def group(name: str, runs: list[tuple[int, Entry]]) -> Method:
    """Runs by seed.

    Raises:
      UserError: when two have the same.
    """
    entries = {}
    for seed, entry in runs:
        if seed in entries:
            raise UserError(
                f"--compare: {name} names two runs of seed {seed}, {entries[seed].name} and {entry.name}: expected the "
                "runs of one method, each with its own config.seed"
            )
        entries[seed] = entry
    return Method(name, dict(sorted(entries.items())))


def summarize(values: list[float | None]) -> dict | None:
    """Mean, sample standard deviation and Student's interval of the mean over seeds; the latter need two of them.

    Returns:
      {"mean", "std", "interval"}, or None where there is no value, or one of a run without it.
    """
    if not values or None in values:
        return None
    mean, spread, interval = float(np.mean(values)), None, [None, None]
    if (n := len(values)) > 1:
        spread = float(np.std(values, ddof=1))
        half = float(scipy.stats.t.ppf(0.5 + bootstrap.LEVEL / 200, n - 1)) * spread / n**0.5
        interval = [mean - half, mean + half]
    return {"mean": mean, "std": spread, "interval": interval}


def paired_difference(values: list[float | None], base: list[float | None]) -> dict | None:
    """`summarize` of values[i] - base[i], with these as "by_seed"; i is a seed that both were trained with."""
    if not values or None in values + base:
        return None
    by_seed = [mine - other for mine, other in zip(values, base, strict=True)]
    return summarize(by_seed) | {"by_seed": by_seed}


def compare(methods: list[Method]) -> list[dict]:
    """One row per method; differences are those to the first, seed by seed.

    Returns:
      rows of name, seeds, steps (of the checkpoints, one per seed), and for miou, boundary_miou and pixel_accuracy
      mean, std and interval over seeds (None where a run has no number), and for all but the first "difference": of
      each of the three, the same, and by_seed; all in %.

    Raises:
      UserError: see `comparison.check`; and when methods were not trained with the same seeds.
    """
    check([entry for method in methods for entry in method.entries.values()])
    first, rows = methods[0], []
    for method in methods:
        if method.entries.keys() != first.entries.keys():
            ours, theirs = (", ".join(map(str, m.entries)) for m in (method, first))
            raise UserError(
                f"--compare: {method.name} has the seeds {ours}, and {first.name} {theirs}: differences are taken seed "
                "by seed, so name runs of the same ones, with a pattern such as runs/pc2seg_[012]"
            )
        values = {key: [entry.scores()[key] for entry in method.entries.values()] for key in SCORES}
        steps = [entry.result["checkpoint"]["step"] for entry in method.entries.values()]
        row = {"name": method.name, "seeds": list(method.entries), "steps": steps}
        row |= {key: summarize(x) for key, x in values.items()}
        if method is first:
            base = values
        else:
            row["difference"] = {key: paired_difference(x, base[key]) for key, x in values.items()}
        rows.append(row)
    return rows


def summary_text(summary: dict | None) -> str:
    """A `summarize` as '53.20 ± 1.04'; of one seed, its mean alone."""
    if summary is None:
        return "-"
    return f"{summary['mean']:.2f}" + ("" if summary["std"] is None else f" ± {summary['std']:.2f}")


def difference_text(difference: dict | None) -> str:
    """A `paired_difference` as '+1.60 ± 1.04 [-0.99, +4.19]'; of one seed, its mean alone."""
    if difference is None:
        return "-"
    text = f"{difference['mean']:+.2f}"
    if difference["std"] is None:
        return text
    return f"{text} ± {difference['std']:.2f} [{', '.join(f'{x:+.2f}' for x in difference['interval'])}]"


def table(rows: list[dict]) -> str:
    """The rows of `compare` as aligned text: the methods, then their differences to the first."""
    lines, differences = [], []
    for row in rows:
        line = {"runs": row["name"], "seeds": ", ".join(map(str, row["seeds"]))}
        line["step"] = ", ".join(map(str, sorted(set(row["steps"]))))
        lines.append(line | {name: summary_text(row[key]) for key, name in SCORES.items()})
        for key, d in row.get("difference", {}).items():
            if d is None:
                continue
            differences.append(
                {
                    f"difference to {rows[0]['name']}": row["name"],
                    "of": SCORES[key],
                    "mean": difference_text(d),
                    "by seed": ", ".join(f"{x:+.2f}" for x in d["by_seed"]),
                }
            )
    tables = [text_table(lines), *([text_table(differences)] if differences else [])]
    note = f"in %; mean ± standard deviation over seeds [{bootstrap.LEVEL} % interval of the mean, Student's t]"
    return "\n\n".join(tables) + f"\n{note}"
