"""Speed and memory of the training step on ready-made batches: no data is read, TensorFlow is not imported.

  python benchmarks/step.py --config=configs/shapes.py:study      # the small network, for a CPU
  python benchmarks/step.py --config=configs/folder.py [--config.batch_labeled=16 --config.batch_unlabeled=16]
                                                                  # ResNet-50 at 513 x 513 in bfloat16

For supervised training, consistency alone and the whole method: images per second (labelled and unlabelled ones),
milliseconds per step (median), achieved FLOP/s (products and convolutions of the step) and their share of the device's
peak where that is known, and memory: the device's peak so far, or what the compiler allocates where it does not tell.
"""

import pathlib
import statistics
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from pc2seg_jax import build, cli, compile_report
from pc2seg_jax.chips import CHIPS
from pc2seg_jax.config import validate
from pc2seg_jax.parallel import make_shardings, shard_batch
from pc2seg_jax.types import Crops

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; keys are set with --config.key=value.")
_STEPS = flags.DEFINE_integer("steps", 20, "Timed steps, after two that warm up.", lower_bound=1)
flags.mark_flag_as_required("config")

CLASSES = 21
ARMS = {
    "supervised": {"objective": "supervised"},
    "consistency": {"loss.contrast_weight": 0.0},
    "pc2seg": {},
}


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


def measure(config: ml_collections.ConfigDict) -> str:
    """One line of the table."""
    shardings = make_shardings()
    build.check_devices(config, shardings)
    compiled, report = compile_report.compile_step(config, num_classes=CLASSES, shardings=shardings)
    functions = build.build_functions(config, num_classes=CLASSES, ignore_id=255, shardings=shardings)
    state = functions.init(config.seed)
    batch = shard_batch(random_batch(build.batch_shapes(config)), shardings.data)
    seconds = []
    for _ in range(_STEPS.value + 2):
        start = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[2:])
    rate = report.flops / median / report.devices
    chip = CHIPS.get(report.device_kind)
    peak = f"{rate / chip.flops:.1%}" if chip else "-"
    used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use") or sum(report.memory.values())
    return (
        f"{report.images / median:9.1f} {median * 1e3:9.1f} {rate / 1e12:12.3f} {peak:>7} {used / 1e9:10.2f} "
        f"{report.compile_seconds:10.0f}"
    )


def main(argv: list[str]) -> None:
    del argv
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}, {_STEPS.value} steps")
    print("arm          images/s   ms/step  TFLOP/s/dev    peak  memory GB  compile s")
    for name, changes in ARMS.items():
        config = _CONFIG.value.copy_and_resolve_references()
        config.update_from_flattened_dict({"data.root": "not read"} | changes)
        validate(config, build.CHOICES)
        print(f"{name:<11} {measure(config)}", flush=True)


if __name__ == "__main__":
    cli.run(main)
