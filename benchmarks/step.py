"""Speed and memory of the training step on ready-made batches: no data is read, TensorFlow is not imported.

  python benchmarks/step.py --config=configs/shapes.py:study      # the small network, for a CPU
  python benchmarks/step.py --config=configs/folder.py [--config.batch_labeled=16 --config.batch_unlabeled=16]
      [--negatives=200,1600]                                      # ResNet-50 at 513 x 513 in bfloat16

For supervised training, consistency alone and the whole method, at every N of --negatives: images per second (labelled
and unlabelled ones), milliseconds per step (median; the arms take turns, step by step), the share of that time by which
it is longer than with consistency alone, achieved FLOP/s (products and convolutions of the step) and their share of the
device's peak where that is known, and the memory that the compiler allocates.
"""

import pathlib
import statistics
import sys
import time
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from pc2seg_jax import build, cli, compile_report
from pc2seg_jax.chips import CHIPS
from pc2seg_jax.parallel import Shardings, make_shardings, shard_batch
from pc2seg_jax.types import Crops, TrainState
from pc2seg_jax.validation import validate

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; keys are set with --config.key=value.")
_STEPS = flags.DEFINE_integer("steps", 20, "Timed steps of every arm, after three that warm up.", lower_bound=1)
_NEGATIVES = flags.DEFINE_list("negatives", [], "N, negatives per anchor; by default the configuration's.")
flags.mark_flag_as_required("config")

CLASSES, WARM_UP = 21, 3
WITHOUT = "consistency"


def random_batch(shapes: Crops, seed: int = 0) -> Crops:
    """Noise in the shapes and types of a batch: no padding, the paper's Cutout, one order of the colours."""
    rng = np.random.default_rng(seed)
    height, width = shapes.labeled.image.shape[1:3]
    values = {
        "window": lambda shape: np.tile([0, 0, height, width], (shape[0], 1)),
        "cutout": lambda shape: np.tile([0, 0, min(100, height), min(100, width)], (shape[0], 1)),
        "order": lambda shape: np.tile(np.arange(shape[1]), (shape[0], 1)),
        "amounts": lambda shape: rng.uniform(0.5, 1.5, shape),
        "contrast_mean": lambda shape: np.full(shape, 0.5),
        "label": lambda shape: rng.integers(0, CLASSES, shape),
        "image": lambda shape: rng.integers(0, 256, shape),
    }

    def fill(stream: Any) -> Any:
        arrays = {name: x and values[name](x.shape).astype(x.dtype) for name, x in stream._asdict().items()}
        return type(stream)(**arrays)

    return Crops(*(stream and fill(stream) for stream in shapes))


class Arm(NamedTuple):
    """A compiled step with what it runs on. state: replaced by every call, which donates it."""

    compiled: jax.stages.Compiled
    report: compile_report.Report
    state: TrainState
    batch: Crops


def arms() -> dict[str, dict]:
    """What to measure: the changes to the configuration, by name."""
    contrast = {f"pc2seg, N = {n}": {"loss.num_negatives": int(n)} for n in _NEGATIVES.value} or {"pc2seg": {}}
    return {"supervised": {"objective": "supervised"}, WITHOUT: {"loss.contrast_weight": 0.0}, **contrast}


def prepare(config: ml_collections.ConfigDict, shardings: Shardings) -> Arm:
    """Compiles the step of a configuration, and makes the state and a batch."""
    build.check_devices(config, shardings)
    compiled, report = compile_report.compile_step(config, num_classes=CLASSES, shardings=shardings)
    functions = build.build_functions(config, num_classes=CLASSES, ignore_id=255, shardings=shardings)
    batch = shard_batch(random_batch(build.batch_shapes(config)), shardings.data)
    return Arm(compiled, report, functions.init(config.seed), batch)


def time_step(arm: Arm) -> tuple[Arm, float]:
    """The arm after one more step, and the seconds it took."""
    start = time.perf_counter()
    state, metrics = jax.block_until_ready(arm.compiled(arm.state, arm.batch))
    seconds = time.perf_counter() - start
    if not metrics["finite"]:
        raise RuntimeError("a step of the benchmark is not finite")
    return arm._replace(state=state), seconds


def line(report: compile_report.Report, median: float, without: float) -> str:
    rate = report.flops / median / report.devices
    chip = CHIPS.get(report.device_kind)
    peak = f"{rate / chip.flops:.1%}" if chip else "-"
    return (
        f"{report.images / median:9.1f} {median * 1e3:9.2f} {1 - without / median:12.2%} {rate / 1e12:12.3f} {peak:>7} "
        f"{sum(report.memory.values()) / 1e9:10.2f}"
    )


def main(argv: list[str]) -> None:
    del argv
    shardings, ready = make_shardings(), {}
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}, {_STEPS.value} steps",
        flush=True,
    )
    for name, changes in arms().items():
        config = _CONFIG.value.copy_and_resolve_references()
        config.update_from_flattened_dict({"data.root": "not read"} | changes)
        validate(config, build.CHOICES)
        ready[name] = prepare(config, shardings)
        print(f"compiled {name} in {ready[name].report.compile_seconds:.0f} s", flush=True)
    seconds = {name: [] for name in ready}
    for _ in range(_STEPS.value + WARM_UP):  # in turns, so that clocks and neighbours favour none
        for name, arm in ready.items():
            ready[name], spent = time_step(arm)
            seconds[name].append(spent)
    medians = {name: statistics.median(spent[WARM_UP:]) for name, spent in seconds.items()}
    print("arm                 images/s   ms/step  of which new  TFLOP/s/dev    peak  memory GB")
    for name, arm in ready.items():
        print(f"{name:<18} {line(arm.report, medians[name], medians[WITHOUT])}", flush=True)


if __name__ == "__main__":
    cli.run(main)
