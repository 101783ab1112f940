"""Scaling on paper: compiles the training step for TPU slices that are not at hand and predicts how they would scale.

  python benchmarks/scaling.py --config=configs/folder.py --topologies=v5e:2x4,v5e:4x4       # the same batch everywhere
  python benchmarks/scaling.py --config=configs/folder.py --topologies=v5e:8x8 --per_chip=4  # 4 + 4 images per chip

Needs `pip install libtpu==0.0.52` and no TPU; a slice takes several minutes, and no data is read. The model, per step:

  compute     FLOPs per chip / (peak * utilisation), for --utilisation, which is an assumption, and for 1
  bytes       all-reduce: bytes * 2 (n - 1) / n; others: bytes; by the chip's ICI bandwidth, or half of it where an axis
              is shorter than 16: then the slice is taken for a grid that does not close to a torus, and its corners
              have two of four links
  latency     operations * hops * 1 us, an assumption; across the slice and back, or within a 2 x 2 of chips where an
              operation stays among 4 chips
  efficiency  compute / (compute + bytes + latency): nothing overlaps; with full overlap, compute / max(compute, rest)

`HBM ms` is the time of all bytes that the compiler counts, were every one in HBM; `s` that of the compiler. `near`
operations stay among four chips. `cores` are those of a host of --host_chips chips that deliver its images at --rates
per core and second (docs/input_pipeline.md).
"""

import math
import pathlib
import re
import sys
from collections.abc import Iterable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
from absl import flags
from ml_collections import config_flags

from pc2seg_jax import build, cli, compile_report
from pc2seg_jax.chips import CHIPS, Chip
from pc2seg_jax.errors import UserError
from pc2seg_jax.parallel import make_shardings
from pc2seg_jax.programs import find_collectives
from pc2seg_jax.validation import validate

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; keys are set with --config.key=value.")
_TOPOLOGIES = flags.DEFINE_list("topologies", ["v5e:2x4", "v5e:4x4"], "Slices, each a kind and a shape.")
_PER_CHIP = flags.DEFINE_integer("per_chip", 0, "Images of each stream per chip; 0: the batches of --config.", 0)
_CLASSES = flags.DEFINE_integer("num_classes", 21, "Classes, which the dataset would tell.", lower_bound=2)
_UTILISATION = flags.DEFINE_float("utilisation", 0.4, "Assumed part of the chip's peak.", 0.01, 1.0)
_RATES = flags.DEFINE_list("rates", ["375", "236"], "Labelled images, and pairs, per core and second.")
_HOST_CHIPS = flags.DEFINE_integer("host_chips", 4, "Chips of a host (v5e: ct5lp-hightpu-4t).", lower_bound=1)
flags.mark_flag_as_required("config")

HOP, TORUS, NEIGHBOURS = 1e-6, 16, 4
_MESH = re.compile(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}")
_LISTS = re.compile(r"(?:replica_groups|source_target_pairs)=\{([\d,{}]+)\}")
COMPILED = "slice|images|GB per chip|GFLOP per chip, compiler's|MB reduced|MB others|operations, near|HBM ms|s"
PREDICTED = "slice|images|compute ms|bytes ms|latency ms|efficiency %|overlapped %|images/s of a host|cores of a host"


def stays_near(instruction: str) -> bool:
    """Whether a collective operation of a compiled program stays among four chips that follow one another."""
    if mesh := _MESH.search(instruction):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2])) <= NEIGHBOURS
    lists = _LISTS.search(instruction)
    groups = re.findall(r"\d[\d,]*", lists[1]) if lists else []
    return bool(groups) and all(len({int(i) // NEIGHBOURS for i in group.split(",")}) == 1 for group in groups)


def count_operations(text: str) -> tuple[int, int]:
    """Collective operations of a compiled program: all of them, and those that stay near."""
    lines = [line for line in text.splitlines() if find_collectives(line)]
    return len(lines), sum(map(stays_near, lines))


def communication(report: compile_report.Report, chip: Chip, shape: list[int], operations: tuple[int, int]):
    """Seconds of a step's bytes and of its latencies."""
    factors = {"all-reduce": 2 * (report.devices - 1) / report.devices}
    wire = sum(c.bytes * factors.get(c.kind, 1.0) for c in report.collectives)
    closed = min(shape) >= TORUS
    hops = sum(2 * (side // 2 if closed else side - 1) for side in shape)
    every, near = operations
    return wire / (chip.ici if closed else chip.ici / 2), HOP * (hops * (every - near) + NEIGHBOURS * near)


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def predict(topology: str) -> str:
    """Prints what was compiled, and returns the row of what is predicted."""
    config = _CONFIG.value.copy_and_resolve_references()
    config.data.root = config.data.root or "not read"
    devices = compile_report.topology_devices(topology)
    chip = CHIPS.get(devices[0].device_kind)
    if chip is None or chip.ici is None or chip.hbm is None:
        raise UserError(f"--topologies has {topology}, of whose chip pc2seg_jax/chips.py has no bandwidths")
    if _PER_CHIP.value:
        config.batch_labeled = config.batch_unlabeled = _PER_CHIP.value * len(devices)
    validate(config, build.CHOICES)
    shardings = make_shardings(devices=devices)
    build.check_devices(config, shardings)
    compiled, report = compile_report.compile_step(config, num_classes=_CLASSES.value, shardings=shardings)
    if report.collectives is None:
        return row((topology, compile_report.UNREADABLE))  # what the other slices took minutes for is not lost
    counted = compiled.cost_analysis() or {}
    operations = count_operations(compiled.as_text())
    moved, waited = communication(report, chip, [int(side) for side in topology.split(":")[1].split("x")], operations)
    streams = [config.batch_labeled] + [config.batch_unlabeled] * (config.objective != "supervised")
    name = topology, " + ".join(map(str, streams))
    sizes = [sum(c.bytes for c in report.collectives if (c.kind == "all-reduce") is kind) for kind in (True, False)]
    flops = report.flops / report.devices
    facts = (
        f"{sum(report.memory.values()) / 1e9:.2f}",
        f"{flops / 1e9:,.0f}, {counted.get('flops', math.nan) / 1e9:,.0f}",
        *(f"{size / 1e6:.1f}" for size in sizes),
        f"{operations[0]}, {operations[1]}",
        f"{1e3 * counted.get('bytes accessed', math.nan) / chip.hbm:.0f}",
        f"{report.compile_seconds:.0f}",
    )
    print(row((*name, *facts)), flush=True)
    compute = [flops / (chip.flops * utilisation) for utilisation in (_UTILISATION.value, 1.0)]
    rest = moved + waited
    part = min(_HOST_CHIPS.value, report.devices) / report.devices
    hosts = [[part * count / (seconds + rest) for count in streams] for seconds in compute]
    cores = [sum(n / float(rate) for n, rate in zip(host, _RATES.value, strict=False)) for host in hosts]
    guesses = (
        " / ".join(f"{1e3 * seconds:.1f}" for seconds in compute),
        f"{1e3 * moved:.2f}",
        f"{1e3 * waited:.2f}",
        " / ".join(f"{100 * seconds / (seconds + rest):.0f}" for seconds in compute),
        " / ".join(f"{100 * seconds / max(seconds, rest):.0f}" for seconds in compute),
        " / ".join(" + ".join(f"{n:,.0f}" for n in host) for host in hosts),
        " / ".join(f"{n:.1f}" for n in cores),
    )
    return row((*name, *guesses))


def main(argv: list[str]) -> None:
    del argv
    heads = [f"{row(names := columns.split('|'))}\n{'|---' * len(names)}|" for columns in (COMPILED, PREDICTED)]
    print(f"Compiled ahead of time, jax {jax.__version__}; nothing was run.\n\n{heads[0]}", flush=True)
    rows = [predict(topology) for topology in _TOPOLOGIES.value]
    print(f"\nPredicted, at {100 * _UTILISATION.value:g} / 100 % of the chip's FLOP/s:\n\n{heads[1]}", *rows, sep="\n")


if __name__ == "__main__":
    cli.run(main)
