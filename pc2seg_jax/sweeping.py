"""Running sweeps: every cell is an ordinary run in a folder of its own, and none is trained twice.

ROOT/base/        config.json: the base configuration, the same for every sweep in ROOT; seeds may differ
ROOT/<cell>/      the run of a cell, named after what differs from the base, and the seed: equal cells are shared
ROOT/logs/        what the runs have printed
ROOT/lock         held by the sweep at work and by every run that it has started, even where the sweep was killed
"""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

import ml_collections

from pc2seg_jax import config as config_lib
from pc2seg_jax.errors import UserError
from pc2seg_jax.sweep_cells import Cell, Row

TRAIN = (sys.executable, "-m", "pc2seg_jax.train")
BASE = pathlib.Path("base", "config.json")


def _check_root(root: pathlib.Path, base: ml_collections.ConfigDict) -> None:
    if (root / BASE).exists():
        before = config_lib.load(root / BASE)
        before.seed = base.seed
        if changed := config_lib.differences(before, base):
            raise UserError(
                f"{root} belongs to sweeps over another configuration: {'; '.join(changed)}. Use another --workdir"
            )
    elif root.exists() and (not root.is_dir() or {path.name for path in root.iterdir()} - {"lock", "base"}):
        raise UserError(f"--workdir={root} exists and is not the folder of a sweep: name a new or an empty folder")


@contextlib.contextmanager
def claim(root: pathlib.Path, base: ml_collections.ConfigDict) -> Iterator[int]:
    """Makes `root` the folder of sweeps over `base`, for this process and those that get the descriptor alone.

    Waits for another sweep in `root`, or for a run that a killed one has left behind.

    Raises:
      UserError: when the folder belongs to another base or to something else.
    """
    _check_root(root, base)
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another sweep in {root}, or for a run that a killed one has left behind", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        _check_root(root, base)
        if not (root / BASE).exists():
            (root / BASE).parent.mkdir(exist_ok=True)
            config_lib.save(base, root / BASE)
        yield lock.fileno()


def read_evaluation(path: pathlib.Path) -> dict | None:
    """A result of `evaluate`, or None where there is none, or one that a crash has cut off."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def is_finished(root: pathlib.Path, cell: Cell) -> bool:
    """Whether a cell was trained and evaluated to its end."""
    try:
        same = not config_lib.differences(config_lib.load(root / cell.folder / "config.json"), cell.config)
    except (OSError, UserError):  # no run yet, or one that died at its first breath
        return False
    return same and read_evaluation(root / cell.folder / "evaluation" / f"{cell.config.steps}_val.json") is not None


@contextlib.contextmanager
def _share_of_cores(slot: int, jobs: int) -> Iterator[None]:
    """Processes started inside run on the slot's share of the cores, where the system has affinity."""
    if jobs == 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    first, end = slot * len(cores) // jobs, (slot + 1) * len(cores) // jobs
    os.sched_setaffinity(0, sorted(cores)[first : max(first + 1, end)])  # of this thread, whose children inherit it
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _start(root: pathlib.Path, cell: Cell, config_file: str, keys: Iterable[str], lock: int) -> subprocess.Popen:
    folder, flat = root / cell.folder, config_lib.flatten(cell.config)
    log = root / "logs" / f"{cell.folder}.log"
    log.parent.mkdir(exist_ok=True)
    options = [f"--config={config_file}", *(f"--config.{key}={flat[key]}" for key in keys), f"--workdir={folder}"]
    with log.open("ab") as output:
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        return subprocess.Popen([*TRAIN, *options], pass_fds=(lock,), **streams)


def _failure(root: pathlib.Path, cell: Cell, status: int) -> str | None:
    """Why a run that has ended did not finish."""
    if status == 0 and is_finished(root, cell):
        return None
    lines = (root / "logs" / f"{cell.folder}.log").read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it has printed nothing")
    return f"exit status {status}: {last}" if status else f"it ended without its last evaluation: {last}"


def _remaining(took: list[float], waiting: int, running: list[float], jobs: int) -> datetime.timedelta:
    """Until `waiting` cells, and those that have been `running` for so many seconds, have each taken the mean."""
    mean = statistics.mean(took)
    rest = [mean] * waiting + [max(0.0, mean - seconds) for seconds in running]
    return datetime.timedelta(seconds=round(max([sum(rest) / jobs, *rest])))


def run(
    rows: list[Row], root: pathlib.Path, config_file: str, overrides: Sequence[str], *, lock: int, jobs: int
) -> dict[str, str]:
    """Trains the cells that are not finished, `jobs` at a time, and returns {folder: why} of those that failed.

    However this function ends, no run that it has started goes on.

    Args:
      config_file, overrides: the --config of the base and the dotted keys that its command line sets. lock: of `claim`.
    """
    cells = {}
    for row in rows:
        for cell in row.cells:
            cells.setdefault(cell.folder, (cell, row))
    waiting = [(cell, row) for cell, row in cells.values() if not is_finished(root, cell)]
    print(f"{len(cells)} cells, {len(cells) - len(waiting)} of them finished before", flush=True)
    running, failures, total, took = {}, {}, len(waiting), []
    try:
        while waiting or running:
            while waiting and (free := set(range(jobs)) - running.keys()):
                (cell, row), slot = waiting.pop(0), min(free)
                keys = dict.fromkeys([*overrides, *row.changes, "seed"])
                with _share_of_cores(slot, jobs):
                    running[slot] = cell, row, time.monotonic(), _start(root, cell, config_file, keys, lock)
            for slot, (cell, row, began, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                if failure := _failure(root, cell, process.returncode):
                    failures[cell.folder] = failure
                else:
                    took.append(time.monotonic() - began)
                since = [time.monotonic() - begun for _, _, begun, _ in running.values()]
                remaining = _remaining(took, len(waiting), since, jobs) if took else "unknown"
                end = f"failed, {failure}" if failure else "finished"
                head = f"{total - len(waiting) - len(running)}/{total}  {row.label}, seed {cell.config.seed}"
                print(f"{head}: {end}; remaining {remaining}", flush=True)
            time.sleep(0.05)
    finally:
        for *_, process in running.values():
            process.terminate()
        for *_, process in running.values():
            process.wait()
    return failures
