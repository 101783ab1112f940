"""Speed and memory of the training step on ready-made batches: no data is read, TensorFlow is not imported.

  python benchmarks/step.py                                                 # the small network, for a CPU
  python benchmarks/step.py --paper [--batch=64 --set=model.remat=true]     # ResNet-50 at 513 x 513 in bfloat16

For supervised training, consistency alone and the whole method: images per second (labelled and unlabelled ones),
milliseconds per step (median), achieved FLOP/s (products and convolutions of the step) and their share of the device's
peak, and memory. The last line is the command's own settings, so that a figure can be taken again.
"""

import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from absl import app, flags

from pc2seg_jax import build, compile_report
from pc2seg_jax.chips import CHIPS
from pc2seg_jax.config import default_config, small_network, validate
from pc2seg_jax.parallel import make_shardings, shard_batch

_PAPER = flags.DEFINE_boolean("paper", False, "The paper's network and crop instead of the small ones.")
_BATCH = flags.DEFINE_integer("batch", 0, "Labelled and as many unlabelled images per step; 0: 8, or 64 with --paper.")
_STEPS = flags.DEFINE_integer("steps", 20, "Timed steps, after two that warm up.", lower_bound=1)
_SET = flags.DEFINE_multi_string("set", [], "A key of the configuration, e.g. --set=model.backbone=resnet101_beta.")

ARMS = {
    "supervised": {"objective": "supervised"},
    "consistency": {"loss.contrast_weight": 0.0},
    "pc2seg": {},
}


def make_config(changes: dict):
    config = default_config()
    config.data.root = "not read"
    if not _PAPER.value:
        small_network(config)
        config.augment.crop_size = (97, 97)
    config.batch_labeled = config.batch_unlabeled = _BATCH.value or (64 if _PAPER.value else 8)
    given = dict(entry.split("=", 1) for entry in _SET.value)
    flat = {key: type(_leaf(config, key))(value) for key, value in given.items()}
    config.update_from_flattened_dict(flat | changes)
    validate(config, build.CHOICES)
    return config


def _leaf(config, key: str):
    for name in key.split("."):
        config = config[name]
    return config


def random_batch(shapes, seed: int = 0):
    """Noise in the shapes and types of a batch; labels and masks are small integers."""
    rng = np.random.default_rng(seed)

    def fill(shape):
        high = {"float32": 256, "int32": 21, "uint8": 2}[shape.dtype.name]
        return rng.integers(0, high, shape.shape).astype(shape.dtype)

    return jax.tree.map(fill, shapes)


def measure(config) -> str:
    shardings = make_shardings()
    build.check_devices(config, shardings)
    compiled, report = compile_report.compile_step(config, num_classes=21, shardings=shardings)
    functions = build.build_functions(config, num_classes=21, ignore_id=255, shardings=shardings)
    state = functions.init(config.seed)
    batch = shard_batch(random_batch(build.batch_shapes(config)), shardings.data)
    seconds = []
    for step in range(_STEPS.value + 2):
        start = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        if step >= 2:
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    rate = report.flops / median / report.devices
    chip = CHIPS.get(report.device_kind)
    peak = f"{rate / chip.flops:6.1%}" if chip else "     -"
    used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use") or sum(report.memory.values())
    return (
        f"{report.images / median:9.1f}  {median * 1e3:8.1f}  {rate / 1e12:10.3f}  {peak}  {used / 1e9:9.2f}  "
        f"{report.compile_seconds:7.0f}"
    )


def main(argv: list[str]) -> None:
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}, {_STEPS.value} steps")
    print("arm          images/s   ms/step  TFLOP/s/dev    peak  memory GB  compile s")
    for name, changes in ARMS.items():
        print(f"{name:<11} {measure(make_config(changes))}", flush=True)
    print("python", *argv, *sys.argv[1:])


if __name__ == "__main__":
    app.run(main)
