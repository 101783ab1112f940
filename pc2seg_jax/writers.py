"""Where the numbers of a run go: metrics.jsonl, TensorBoard, and the terminal."""

import contextlib
import json
import math
import pathlib
import resource
import sys
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import tensorboardX
import tqdm


def flatten_metrics(metrics: dict[str, jax.Array], class_names: Sequence[str]) -> dict[str, float]:
    """Metrics for the log: one value per class becomes one line per class, and what was not measured is left out."""
    scalars = {}
    for name, value in jax.device_get(metrics).items():
        lines = (
            {name: value}
            if np.ndim(value) == 0
            else {f"{name}/{c}": x for c, x in zip(class_names, value, strict=True)}
        )
        scalars |= {line: float(x) for line, x in lines.items() if not np.isnan(x)}
    del scalars["finite"]
    return scalars


def peak_memory_gb() -> float:
    """The device's peak so far, or where it does not tell, as a CPU, the process's, in 1e9 bytes."""
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return (peak or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1e9


class MetricWriter:
    """Appends scalars to `<workdir>/metrics.jsonl` and to TensorBoard event files.

    On resuming at step t, lines of later steps, written by a run that died after its last checkpoint, are dropped, so
    every step stands in the file once. `seconds` is the training time that the kept lines tell of.
    """

    def __init__(self, workdir: pathlib.Path, start_step: int):
        path = workdir / "metrics.jsonl"
        self.seconds = 0.0
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= start_step]
            path.write_text("".join(line + "\n" for line in lines))
            self.seconds = max((json.loads(line).get("seconds", 0.0) for line in lines), default=0.0)
        self._file = path.open("a")
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # a line cut off by a crash
        return math.inf


class Progress:
    """A progress bar on a terminal, plain lines elsewhere: loss, mIoU, images per second and remaining time."""

    def __init__(self, start_step: int, steps: int, images_per_step: int):
        self._steps, self._images = steps, images_per_step
        self._last, self._step = time.monotonic(), start_step
        self.seconds, self._count = 0.0, 0  # of training alone: without compiling and evaluating
        self.miou = math.nan
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(initial=start_step, total=steps, unit="step", dynamic_ncols=True)

    def start(self, step: int) -> None:
        """Counts from here on: what came before, such as compiling the first step, was not a step's time."""
        self._last, self._step = time.monotonic(), step

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time spent inside, such as an evaluation's, does not count as training."""
        before = time.monotonic()
        yield
        self._last += time.monotonic() - before

    def update(self, step: int, loss: float) -> float:
        """Shows step `step`; returns images per second since the last call."""
        now = time.monotonic()
        elapsed, done = now - self._last, step - self._step
        self._last, self._step = now, step
        self.seconds, self._count = self.seconds + elapsed, self._count + done
        rate = done * self._images / elapsed
        miou = "" if math.isnan(self.miou) else f"mIoU {self.miou:.2f} %  "
        if self._bar is not None:
            self._bar.update(done)
            self._bar.set_postfix_str(f"loss {loss:.3f}  {miou}{rate:.1f} images/s")
        else:
            remaining = int(self.seconds / max(self._count, 1) * (self._steps - step))
            print(
                f"step {step}/{self._steps}  loss {loss:.4f}  {miou}{rate:.1f} images/s  "
                f"remaining {remaining // 3600}:{remaining // 60 % 60:02d}:{remaining % 60:02d}",
                flush=True,
            )
        return rate

    def message(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
