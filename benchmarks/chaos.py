"""Nothing is lost: a short training killed at random moments, beside the same training left alone.

  python benchmarks/chaos.py --kills=20 --seed=0                              # SIGKILL
  python benchmarks/chaos.py --kills=5 --seed=0 --processes=2 --signal=TERM   # SIGTERM to one of two processes

Every other kill comes at a random moment of a save, the others at any moment after the start of the program (SIGTERM:
of the training). Then the same command starts again. In the end the metrics file, the evaluations, the newest and the
best checkpoint must be the same bytes and numbers as those of the training that was left alone; the exit status is 1
where they are not. Takes about half a minute per kill on two cores.
"""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESUME = 75
_KILLS = flags.DEFINE_integer("kills", 20, "How often the training is killed.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
_PROCESSES = flags.DEFINE_integer("processes", 1, "Processes of the training.", lower_bound=1)
_SIGNAL = flags.DEFINE_enum("signal", "KILL", ["KILL", "TERM"], "What the training gets.")
_STEPS = flags.DEFINE_integer("steps", 200, "Length of the training.", lower_bound=10)

SETTINGS = {
    "batch_labeled": 4,
    "batch_unlabeled": 4,
    "group_size": 2,
    "teacher_momentum": 0.9,
    "log_every": 1,
    "checkpoint_every": 2,
    "eval.every": 40,
    "eval.batch_size": 4,
    "data.num_val": 8,
    "augment.crop_size": "(33,33)",
    "augment.cutout_size": 8,
    "loss.num_negatives": 10,
}


def start(workdir: pathlib.Path, cache: pathlib.Path) -> list[subprocess.Popen]:
    settings = SETTINGS | {"steps": _STEPS.value}
    command = [sys.executable, "-m", "pc2seg_jax.train", "--config=configs/shapes.py:sweep", f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    own = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for i in range(_PROCESSES.value):
        joining = [f"--coordinator=localhost:{port}", f"--num_processes={_PROCESSES.value}", f"--process_id={i}"]
        with (workdir.parent / f"{workdir.name}_{i}.log").open("a") as log:
            whole = command + (joining if _PROCESSES.value > 1 else [])
            processes.append(subprocess.Popen(whole, cwd=ROOT, env=os.environ | own, stdout=log, stderr=log))
    return processes


def wait_for(condition, processes: list[subprocess.Popen]) -> bool:
    """Whether it came true before the training ended."""
    while not condition():
        if any(process.poll() is not None for process in processes):
            return False
        time.sleep(0.002)
    return True


def kill_somewhere(workdir: pathlib.Path, processes: list[subprocess.Popen], rng: random.Random, in_save: bool) -> bool:
    """Whether the signal came before the end of the training."""
    lines = workdir / "metrics.jsonl"
    known = lines.stat().st_mtime_ns if lines.exists() else 0

    def trains() -> bool:
        return lines.exists() and lines.stat().st_mtime_ns > known

    def saves() -> bool:
        return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))

    if in_save or _SIGNAL.value == "TERM":
        if not wait_for(trains, processes) or (in_save and not wait_for(saves, processes)):
            return False
        time.sleep(rng.uniform(0, 0.3 if in_save else 2))
    else:
        time.sleep(rng.uniform(0, 30))
    if any(process.poll() is not None for process in processes):
        return False
    rng.choice(processes).send_signal(getattr(signal, f"SIG{_SIGNAL.value}"))
    return True


def lines_of(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def checkpoints(workdir: pathlib.Path) -> dict[str, dict]:
    """Every array of the checkpoints that are kept: the newest two and the best."""
    found = {}
    for step in sorted((workdir / "checkpoints").iterdir()):
        for item in ("model", "train"):
            with ocp.StandardCheckpointer() as reader:
                found[f"{step.name}/{item}"] = reader.restore(step / item)
    return found


def same_arrays(a: dict, b: dict) -> bool:
    import jax

    x, y = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(x) == len(y) and all(
        np.asarray(p).tobytes() == np.asarray(q).tobytes() for p, q in zip(x, y, strict=True)
    )


def compare(killed: pathlib.Path, alone: pathlib.Path) -> dict[str, bool]:
    steps = [line["step"] for line in lines_of(killed) if "loss" in line]
    ours, theirs = checkpoints(killed), checkpoints(alone)
    results = {
        "every step logged once": steps == list(range(1, _STEPS.value + 1)),
        "metrics.jsonl": (killed / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes(),
        "steps kept": ours.keys() == theirs.keys(),
    }
    for name in sorted(ours.keys() & theirs.keys()):
        results[f"checkpoint {name}"] = same_arrays(ours[name], theirs[name])
    for path in sorted((alone / "evaluation").glob("*.json")):
        other = killed / "evaluation" / path.name
        results[f"evaluation {path.name}"] = other.exists() and other.read_bytes() == path.read_bytes()
    return results


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.ERROR)
    rng = random.Random(_SEED.value)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="chaos_"))
    cache = folder / "compiled"
    print(f"in {folder}, which is kept", flush=True)
    alone, killed = folder / "alone", folder / "killed"
    begin = time.monotonic()
    assert [process.wait() for process in start(alone, cache)] == [0] * _PROCESSES.value, "see alone_0.log"
    print(f"left alone: {time.monotonic() - begin:.0f} s", flush=True)
    expected = [-signal.SIGKILL] if _SIGNAL.value == "KILL" else [RESUME] * _PROCESSES.value
    kills = in_saves = 0
    while kills < _KILLS.value:
        in_save = kills % 2 == 0
        processes = start(killed, cache)
        struck = kill_somewhere(killed, processes, rng, in_save)
        statuses = [process.wait() for process in processes]
        if not struck:
            print(f"the training has ended before kill {kills + 1}, with {statuses}: give it more --steps")
            sys.exit(1)
        done = len(lines_of(killed)) if (killed / "metrics.jsonl").exists() else 0
        kills, in_saves = kills + 1, in_saves + in_save
        print(f"kill {kills}{' in a save' if in_save else ''}: statuses {statuses}, {done} lines logged", flush=True)
        if statuses != expected:
            sys.exit(1)
    statuses = [process.wait() for process in start(killed, cache)]
    results = compare(killed, alone)
    print(f"{kills} kills, {in_saves} of them in a save; the last start ended with {statuses}")
    for name, same in results.items():
        print(f"{name}: {'the same' if same else 'DIFFERENT'}")
    sys.exit(0 if all(results.values()) and not any(statuses) else 1)


if __name__ == "__main__":
    app.run(main)
