"""Trains many configurations with several seeds, and writes one table of them.

python -m pc2seg_jax.sweep --config=configs/shapes.py --grid=config.loss.contrast_weight=0,0.1,0.3 --seeds=3 \
  --workdir=runs/sweep [--grid=...] [--config.key=value ...]
python -m pc2seg_jax.sweep --config=configs/voc12.py:r50,1_8 --sweep=configs/sweeps/table5.py --workdir=runs/voc

Several --grid are multiplied. --config.key=value applies to every cell. Every cell is an ordinary run in a folder of
its own: the same command continues after any interruption, never trains a finished cell again, and sweeps over the same
configuration in the same --workdir share their equal cells. The table is <name>.md, .json and .svg in --output. It has
every cell's difference to one of them, seed by seed: to BASELINE of the file, else to the first.
"""

import pathlib
import signal
import sys

from absl import flags
from ml_collections import config_flags

from pc2seg_jax import cli
from pc2seg_jax.files import local_path

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The base: a file of configs/; keys are set for all cells with --config.key=value."
)
_GRID = flags.DEFINE_multi_string("grid", [], "config.key=value,value,...; given several times, the product.")
_SWEEP = flags.DEFINE_string("sweep", None, "A file of configs/sweeps/, instead of --grid.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds per cell: config.seed, config.seed + 1, ...", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the sweep: new, empty, or of sweeps over the same base.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Cells at a time, for CPUs: each has its share of the cores.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the table, which is replaced there; by default the workdir.")
flags.mark_flags_as_required(["config", "workdir"])


@flags.multi_flags_validator(
    ["grid", "sweep"], "name what to sweep: either --grid=config.key=value,... or --sweep=FILE"
)
def _names_one_kind(values: dict) -> bool:
    return bool(values["grid"]) != bool(values["sweep"])


def main(argv: list[str]) -> None:
    del argv
    from pc2seg_jax import build, config, surroundings, sweep_cells, sweep_report, sweeping

    for number in (signal.SIGTERM, signal.SIGINT):  # a shell starts what runs in its background deaf to the latter
        signal.signal(number, signal.default_int_handler)
    base, root = _CONFIG.value, local_path("--workdir", _WORKDIR.value)
    output = local_path("--output", _OUTPUT.value) if _OUTPUT.value else root
    sweep_report.check_output(output)
    if _SWEEP.value:
        wanted = sweep_cells.load_sweep(pathlib.Path(_SWEEP.value), base)
    else:
        wanted = sweep_cells.load_grid(_GRID.value, base)
    rows = sweep_cells.make_rows(base, wanted, seeds=_SEEDS.value, choices=build.CHOICES)
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    overrides = list(config_flags.get_override_values(flags.FLAGS["config"]))
    try:
        with sweeping.claim(root, base) as lock:
            failures = sweeping.run(rows, root, file, overrides, lock=lock, jobs=_JOBS.value)
            flat = config.flatten(base)
            head = {
                "name": pathlib.Path(_SWEEP.value).stem if _SWEEP.value else "sweep",
                "configuration": file,
                "overrides": {key: flat[key] for key in overrides},
                "steps": base.steps,
                "baseline": wanted.baseline,
                **surroundings.describe(),
            }
            path = sweep_report.write(sweep_report.make_table(rows, root, failures, head), output)
    except KeyboardInterrupt:
        sys.exit(f"interrupted: the same command goes on with the cells that {root} does not hold yet")
    print(path.read_text())
    print(f"wrote {path}, .json and .svg beside it")
    if failures:
        sys.exit(f"{len(failures)} cells failed, see {root / 'logs'}: the same command tries them again")


if __name__ == "__main__":
    cli.run(main)
