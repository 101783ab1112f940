"""What the compiler says of a training step: memory, operations and communication, before anything is run."""

import os
import time
from typing import NamedTuple

import jax
import ml_collections

from pc2seg_jax import build, gpus
from pc2seg_jax.chips import CHIPS
from pc2seg_jax.errors import UserError
from pc2seg_jax.flops import count_flops
from pc2seg_jax.parallel import Shardings
from pc2seg_jax.programs import Collective, Traffic, find_collectives, find_traffic
from pc2seg_jax.types import Crops, TrainState

UNREADABLE = "this jaxlib cannot read the program that this libtpu has compiled; try another version of libtpu"


class Report(NamedTuple):
    """One compiled step.

    devices, device_kind: what it is for. images: per step, labelled and unlabelled. parameters: numbers to train.
    flops: of the step on all devices, from the jaxpr; compiled_flops: the compiler's own count, or None where it does
      not count. compile_seconds: of the compiler alone.
    memory: bytes per device, {"arguments", "temporary", "outputs", "code"}; outputs without those that take the place
      of arguments.
    collectives: None where the program cannot be read, see `UNREADABLE`. traffic: per device; None but on a GPU.
    """

    devices: int
    device_kind: str
    images: int
    parameters: int
    flops: float
    compiled_flops: float | None
    memory: dict[str, int]
    collectives: list[Collective] | None
    traffic: Traffic | None
    compile_seconds: float


def topology_devices(topology: str) -> list:
    """The devices of a TPU slice such as "v5e:2x4" or of GPUs such as "h200:8", to compile for; for "", those at hand.

    Raises:
      UserError: when the topology is unknown, or the compiler of its devices is not installed.
    """
    if not topology:
        return jax.devices()
    # libtpu otherwise asks a metadata server, which exists on TPU machines only, complains about what it did not find,
    # and serves one process at a time.
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
        ("TPU_STDERR_LOG_LEVEL", "3"),
        ("TPU_MIN_LOG_LEVEL", "3"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # never start the runtime of TPUs or GPUs
    from jax.experimental import topologies

    kind, _, count = topology.partition(":")
    expected = "a TPU slice such as v5e:2x4, and its compiler, which `pip install libtpu==0.0.52` installs"
    try:
        if kind in gpus.TARGETS:
            expected = (
                "a number of GPUs of one machine, and the compiler of GPUs, which "
                f"`pip install jax-cuda12-plugin=={jax.__version__}` installs"
            )
            shape = {"topology": f"1x1x{count or 1}", "target_config": gpus.describe(kind)}
            return topologies.get_topology_desc(kind, "cuda", **shape).devices
        return topologies.get_topology_desc(topology, "tpu").devices
    except Exception as error:  # the libraries raise several types, all for the same two reasons
        others = "" if kind in gpus.TARGETS else f"; or one of {', '.join(gpus.TARGETS)}, with a number such as h200:8"
        raise UserError(f"--topology={topology} cannot be described ({error}): expected {expected}{others}") from error


def compile_for(lowered: jax.stages.Lowered, device: jax.Device) -> jax.stages.Compiled:
    """Compiles for devices like this one, at hand or not."""
    untried = device.platform == "gpu" and device not in jax.devices()
    return lowered.compile(compiler_options=gpus.COMPILER_OPTIONS if untried else None)


def abstract_inputs(
    config: ml_collections.ConfigDict, functions: build.Functions, shardings: Shardings
) -> tuple[TrainState, Crops]:
    """State and batch of the training step as shapes with shardings."""
    trees = jax.eval_shape(functions.init, 0), build.batch_shapes(config)
    return tuple(
        jax.tree.map(lambda x, sharding=sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
        for tree, sharding in zip(trees, (shardings.replicated, shardings.data), strict=True)
    )


def step_flops(config: ml_collections.ConfigDict, *, num_classes: int, shardings: Shardings) -> float:
    """`count_flops` of the training step on a whole batch.

    Taken in one part: parts need the same operations, but their traced program also has a loop that only counts pixels
    and from which the compiler removes the network.
    """
    whole = config.copy_and_resolve_references()
    whole.accumulate = 1
    functions = build.build_functions(whole, num_classes=num_classes, ignore_id=255, shardings=shardings)
    return count_flops(functions.train_step.trace(*abstract_inputs(whole, functions, shardings)).jaxpr.jaxpr)


def compile_step(
    config: ml_collections.ConfigDict, *, num_classes: int, shardings: Shardings
) -> tuple[jax.stages.Compiled, Report]:
    """Compiles the training step of a run for the devices of a mesh, which need not be at hand."""
    functions = build.build_functions(config, num_classes=num_classes, ignore_id=255, shardings=shardings)
    state, batch = abstract_inputs(config, functions, shardings)
    device = shardings.mesh.devices.flat[0]
    lowered = functions.train_step.trace(state, batch).lower()
    start = time.perf_counter()
    compiled = compile_for(lowered, device)
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    flops = (compiled.cost_analysis() or {}).get("flops")
    streams = (batch.labeled.image, *(() if batch.unlabeled is None else (batch.unlabeled.image,)))
    return compiled, Report(
        devices=shardings.mesh.size,
        device_kind=device.device_kind,
        images=sum(len(images) for images in streams),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        flops=step_flops(config, num_classes=num_classes, shardings=shardings),
        compiled_flops=flops and flops * shardings.mesh.size,
        memory={
            "arguments": memory.argument_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
            "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        },
        collectives=_read_collectives(compiled),
        traffic=find_traffic(compiled.as_text()) if device.platform == "gpu" else None,
        compile_seconds=seconds,
    )


def _read_collectives(compiled: jax.stages.Compiled) -> list[Collective] | None:
    try:
        return find_collectives(compiled.as_text())
    except jax.errors.JaxRuntimeError:  # a newer libtpu may use instructions that this jaxlib does not know
        return None


def table(report: Report) -> str:
    """The report for people."""
    chip = CHIPS.get(report.device_kind)
    total = sum(report.memory.values())
    share = f", {total / chip.memory:.0%} of its {chip.memory / 1e9:.0f} GB" if chip else ""
    lines = [
        f"devices          {report.devices} x {report.device_kind}",
        f"parameters       {report.parameters:,}",
        f"images per step  {report.images} ({report.images / report.devices:g} per device)",
        f"FLOPs            {report.flops:.4g} per step, {report.flops / report.images:.4g} per image",
    ]
    if report.compiled_flops:
        ratio = report.compiled_flops / report.flops
        lines.append(f"  compiler       {report.compiled_flops:.4g}, {ratio:.2f} times that; a loop's body counts once")
    if chip:
        lines.append(f"  at full speed  {report.flops / report.devices / chip.flops * 1e3:.1f} ms per step")
    if report.traffic:
        lines.append(f"memory traffic   {report.traffic.bytes / 1e9:.1f} GB in {report.traffic.kernels:,} kernels")
        if chip:
            lines.append(f"  at full speed  {report.traffic.bytes / chip.hbm * 1e3:.1f} ms per step")
    lines.append(f"bytes per device {total / 1e9:.2f} GB{share}")
    lines += [f"  {name:<15}{size / 1e9:.3f} GB" for name, size in report.memory.items()]
    if not report.memory["temporary"]:
        lines.append("  no temporaries are told, though no step does without: the sum is too small; try another libtpu")
    if report.collectives is None:
        lines.append(f"collectives      unknown, as {UNREADABLE}")
    else:
        lines.append("collectives      " + ("per device and step" if report.collectives else "none"))
    lines += [
        f"  {c.kind:<19}{c.dtype:<6}{c.bytes / 1e6:>9.3f} MB in {c.operations} operations"
        for c in report.collectives or ()
    ]
    lines.append(f"compile time     {report.compile_seconds:.0f} s")
    return "\n".join(lines)
