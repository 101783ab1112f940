"""Where the numbers of a run go: metrics.jsonl, timings.jsonl, TensorBoard, and the terminal."""

import collections
import contextlib
import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import tensorboardX
import tqdm

from pc2seg_jax import surroundings
from pc2seg_jax.files import AnyPath, GrowingText, WrittenHere, replace_text


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
    """Appends scalars to `<workdir>/metrics.jsonl`, what depends on the clock to `timings.jsonl`, all to TensorBoard.

    metrics.jsonl is a function of the configuration and the data: a run that was killed and continued has the same
    bytes as one that was not. On resuming at step t, lines of later steps, written by a run that died after its last
    checkpoint, are dropped, so every step stands in a file once. `seconds` is the training time that the kept lines
    tell of.

    A line of timings.jsonl with the key `started` tells which versions and what hardware made the lines behind it.
    """

    def __init__(self, workdir: AnyPath, start_step: int):
        self._files = {}
        for name in ("metrics", "timings"):
            path = workdir / f"{name}.jsonl"
            lines = path.read_bytes().decode(errors="replace").splitlines() if path.exists() else []
            kept = [line for line in lines if _last_step(line) <= start_step]
            if kept != lines:
                replace_text(path, _text(kept))
            self._files[name] = GrowingText(path, _text(kept))
        self.seconds = max((json.loads(line).get("seconds", 0.0) for line in kept), default=0.0)
        self._tensorboard = WrittenHere(workdir / "tensorboard")
        self._board = tensorboardX.SummaryWriter(str(self._tensorboard.folder), purge_step=start_step + 1)

    def write(self, step: int, scalars: dict[str, float], *, file: str = "metrics") -> None:
        """file: "metrics" or "timings"."""
        self._files[file].append(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._board.add_scalar(f"time/{name}" if file == "timings" else name, value, step)

    def started(self, step: int) -> None:
        """Notes when and on what the steps behind `step` are made."""
        line = {"step": step, "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), **surroundings.describe()}
        self._files["timings"].append(json.dumps(line) + "\n")

    def flush(self) -> None:
        """What TensorBoard shows so far, where it is not on this disk."""
        self._board.flush()
        self._tensorboard.copy()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._board.close()
        self._tensorboard.close()


def _text(lines: Sequence[str]) -> str:
    return "".join(line + "\n" for line in lines)


def _last_step(line: str) -> float:
    """The step up to which something must have been done for a line to stay: of a start, the one that came of it."""
    try:
        stored = json.loads(line)
        return stored["step"] + ("started" in stored)
    except (ValueError, KeyError, TypeError):  # a line cut off by a crash
        return math.inf


class Clock:
    """Where the time of this process goes, by kind: "input" (waiting for batches), "evaluation", "checkpoint"."""

    def __init__(self):
        self.seconds = collections.Counter()

    @contextlib.contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        before = time.monotonic()
        try:
            yield
        finally:
            self.seconds[kind] += time.monotonic() - before


class Progress:
    """A progress bar on a terminal, plain lines elsewhere: loss, mIoU, images per second, waiting, remaining time."""

    def __init__(self, start_step: int, steps: int, images_per_step: int, clock: Clock):
        self._steps, self._images, self._clock = steps, images_per_step, clock
        self._last, self._step, self._waited = time.monotonic(), start_step, 0.0
        self.seconds, self.count = 0.0, 0  # of training alone: without compiling, evaluating and saving
        self.input_seconds = 0.0
        self.miou = math.nan
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(initial=start_step, total=steps, unit="step", dynamic_ncols=True)

    def start(self, step: int) -> None:
        """Counts from here on: what came before, such as compiling the first step, was not a step's time."""
        self._last, self._step, self._waited = time.monotonic(), step, self._clock.seconds["input"]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time spent inside, such as an evaluation's, does not count as training."""
        before = time.monotonic()
        yield
        self._last += time.monotonic() - before

    def update(self, step: int, loss: float) -> dict[str, float]:
        """Shows step `step`; returns images per second and the share of time spent waiting for input since last."""
        now, waited = time.monotonic(), self._clock.seconds["input"]
        elapsed, done, wait = now - self._last, step - self._step, waited - self._waited
        self._last, self._step, self._waited = now, step, waited
        self.seconds, self.count, self.input_seconds = (
            self.seconds + elapsed,
            self.count + done,
            self.input_seconds + wait,
        )
        rate, share = done * self._images / elapsed, wait / elapsed
        miou = "" if math.isnan(self.miou) else f"mIoU {self.miou:.2f} %  "
        tail = f"{rate:.1f} images/s  input {share:.0%}  checkpoints {self._clock.seconds['checkpoint']:.1f} s"
        if self._bar is not None:
            self._bar.update(done)
            self._bar.set_postfix_str(f"loss {loss:.3f}  {miou}{tail}")
        else:
            remaining = int(self.seconds / max(self.count, 1) * (self._steps - step))
            print(
                f"step {step}/{self._steps}  loss {loss:.4f}  {miou}{tail}  "
                f"remaining {remaining // 3600}:{remaining // 60 % 60:02d}:{remaining % 60:02d}",
                flush=True,
            )
        return {"images_per_second": rate, "input_wait": share}

    def summary(self) -> str:
        """Where the time of this process went, in one sentence."""
        if not self.count:
            return ""
        spent = self._clock.seconds
        return (
            f"{self.count} steps in {self.seconds / 60:.1f} min, "
            f"{self.count * self._images / self.seconds:.1f} images/s, "
            f"{self.input_seconds / self.seconds:.1%} of it waiting for input; besides, {spent['evaluation']:.1f} s in "
            f"evaluation and {spent['checkpoint']:.1f} s in checkpointing"
        )

    def message(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class RunLog:
    """All that a run tells of itself, by the lead; in other processes it tells nothing.

    Args:
      start_step: what has been done before. steps, images_per_step: of the run.
    """

    def __init__(self, workdir: AnyPath, *, start_step: int, steps: int, images_per_step: int):
        self.clock = Clock()
        lead = jax.process_index() == 0
        self._progress = Progress(start_step, steps, images_per_step, self.clock) if lead else None
        self._writer = MetricWriter(workdir, start_step) if lead else None
        if lead and start_step < steps:  # a finished run that is started again makes nothing
            self._writer.started(start_step)

    def message(self, text: str) -> None:
        if self._progress and text:
            self._progress.message(text)

    def start(self, step: int) -> None:
        """Counts the time of steps from here on."""
        if self._progress:
            self._progress.start(step)

    @contextlib.contextmanager
    def apart(self, kind: str) -> Iterator[None]:
        """Time that is not a step's: "evaluation", "checkpoint", ..."""
        with self.clock.spent(kind), self._progress.paused() if self._progress else contextlib.nullcontext():
            yield

    def step(self, step: int, values: dict[str, float]) -> None:
        """A logged training step."""
        if self._progress:
            rates = self._progress.update(step, values["loss"])
            seconds = self._writer.seconds + self._progress.seconds
            spent = {f"{kind}_seconds": self.clock.seconds[kind] for kind in ("evaluation", "checkpoint")}
            self._writer.write(step, values)
            timings = rates | {"seconds": seconds} | spent | {"memory_gb": peak_memory_gb()}
            self._writer.write(step, timings, file="timings")

    def evaluation(self, step: int, miou: float, values: dict[str, float]) -> None:
        if self._progress:
            self._progress.miou = miou
            self._writer.write(step, values)
            self._writer.flush()
            self._progress.message(f"step {step}: val mIoU {miou:.2f} %")

    def summary(self) -> None:
        """Says where the time went."""
        if self._progress:
            self.message(self._progress.summary())

    def close(self) -> None:
        if self._progress:
            self._progress.close()
            self._writer.close()
