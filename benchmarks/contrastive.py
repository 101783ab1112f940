"""Time, memory, operations and communication of the pixel contrastive loss and its gradient.

  python benchmarks/contrastive.py                       # on this machine, every cell in a process of its own
  python benchmarks/contrastive.py --topology=v5e:2x4    # compiled for chips not at hand: pip install libtpu==0.0.52
  python benchmarks/contrastive.py --share               # operations, as a part of the paper's whole training step
  python benchmarks/contrastive.py --share --topology=h200   # kernels and memory traffic: pip install jax-cuda12-plugin
  python benchmarks/contrastive.py --noise               # how far loss and gradient differ from draw to draw

Forms: `literal` draws and gathers as the paper writes it, `full` lets every anchor look at all candidates without
gathering, `window` at a part of them with a certificate (pc2seg_jax/ops/contrastive.py). Groups of 4, 8 and 16 images
of 33 x 33 cells, 128 channels, 21 classes, 70 % of the pixels background. Milliseconds: median of the repetitions after
one that warms up. Memory: temporaries that the compiler allocates, and on this machine the process's peak as well.
Cells whose temporaries exceed --limit_gb are compiled, but not run.
"""

import itertools
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from jax.sharding import NamedSharding

from pc2seg_jax import cli, compile_report, config, recipes
from pc2seg_jax.chips import CHIPS
from pc2seg_jax.errors import UserError
from pc2seg_jax.flops import count_flops
from pc2seg_jax.objective import PAIRS_ON_GPU
from pc2seg_jax.ops.contrastive import pixel_contrast, pixel_contrast_literal
from pc2seg_jax.ops.losses import masked_mean
from pc2seg_jax.parallel import Shardings, make_shardings, map_groups
from pc2seg_jax.programs import find_collectives

_FORMS = flags.DEFINE_list("forms", ["literal", "full", "window"], "Which forms.")
_NEGATIVES = flags.DEFINE_list("negatives", ["50", "100", "200", "400", "800", "1600"], "N, negatives per anchor.")
_GROUPS = flags.DEFINE_list("groups", ["4", "8", "16"], "Images per group.")
_TOPOLOGY = flags.DEFINE_string("topology", "", "Compile for others instead, e.g. v5e:2x4 or h200:4: for one, and all.")
_SHARE = flags.DEFINE_bool("share", False, "Count operations of the paper's training step with and without contrast.")
_NOISE = flags.DEFINE_bool("noise", False, "Repeat draws with the same features, N = 200, groups of 4.")
_LIMIT = flags.DEFINE_float("limit_gb", 14.0, "Cells that need more memory are not run.", lower_bound=0)
_CELL = flags.DEFINE_string("cell", None, "Internal: measures one cell in this process.")

SIDE, CHANNELS, CLASSES, BACKGROUND, REPETITIONS, PATIENCE = 33, 128, 21, 0.7, 5, 20.0
DRAWS, BLOCKS = 16, (64, 256, 1024)


def shapes(images: int) -> dict[str, tuple]:
    cells = (images, SIDE, SIDE)
    return {
        "weak": ((*cells, CHANNELS), jnp.float32),
        "strong": ((*cells, CHANNELS), jnp.float32),
        "probs": ((*cells, CLASSES), jnp.float32),
        "valid": (cells, jnp.bool_),
    }


def random_inputs(images: int) -> dict[str, np.ndarray]:
    """Features of classes and noise, and predictions that are 90 % sure of their class on average."""
    rng = np.random.default_rng(0)
    cells = (images, SIDE, SIDE)
    classes = np.where(rng.random(cells) < BACKGROUND, 0, rng.integers(1, CLASSES, cells))
    logits = rng.normal(size=(*cells, CLASSES)) + 6 * np.eye(CLASSES)[classes]
    features = rng.standard_normal((CLASSES, CHANNELS))[classes] + rng.standard_normal((*cells, CHANNELS))
    return {
        "weak": (features + 0.5 * rng.standard_normal(features.shape)).astype(np.float32),
        "strong": (features + 0.5 * rng.standard_normal(features.shape)).astype(np.float32),
        "probs": np.asarray(jax.nn.softmax(logits), np.float32),
        "valid": rng.random(cells) < 0.96,
    }


def make_function(form: str, negatives: int, group_size: int, shardings: Shardings, **others):
    """Loss, exact fraction, and gradients to both views, of a whole number of groups."""
    settings = {"strategy": "different_image_pseudo_label", "num_negatives": negatives} | others

    def contrast(images, keys, span):
        features = (images[name] for name in ("weak", "strong", "probs", "valid"))
        if form == "literal":
            return pixel_contrast_literal(*features, keys, **settings)
        pairs = PAIRS_ON_GPU if shardings.mesh.devices.flat[0].platform == "gpu" else 0
        return pixel_contrast(*features, keys, method=form, span=span, pairs_at_once=pairs, **settings)

    def mean_loss(weak, strong, rest, draw=0):
        images = rest | {"weak": weak, "strong": strong}
        keys = jax.random.split(jax.random.key(draw), len(weak) // group_size)
        loss, _, stats = map_groups(contrast, images, keys, group_size=group_size, mesh=shardings.mesh)
        return masked_mean(loss, stats.valid), masked_mean(stats.exact, stats.valid)

    return jax.jit(jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True))


def arguments(tree: dict) -> tuple:
    return tree["weak"], tree["strong"], {name: tree[name] for name in ("probs", "valid")}


def measure(form: str, negatives: int, group_size: int) -> dict:
    """One cell on the first device of this machine."""
    shardings = make_shardings(1)
    inputs = jax.device_put(arguments(random_inputs(group_size)), shardings.data)
    compiled = make_function(form, negatives, group_size, shardings).lower(*inputs).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes / 2**30
    result = {"temporaries": temporaries}
    if temporaries * 2**30 > _LIMIT.value * 1e9:
        return result
    seconds, spent = [], 0.0
    while not seconds or (len(seconds) <= REPETITIONS and spent < PATIENCE):
        start = time.perf_counter()
        ((loss, exact), _) = jax.block_until_ready(compiled(*inputs))
        seconds.append(time.perf_counter() - start)
        spent += seconds[-1]
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    peak = peak or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = seconds[1:] or seconds
    return result | {
        "ms": 1e3 * statistics.median(times),
        "peak": peak / 2**30,
        "loss": float(loss),
        "exact": float(exact),
    }


def cells() -> list[tuple[int, int, str]]:
    return [(int(g), int(n), form) for g, n, form in itertools.product(_GROUPS.value, _NEGATIVES.value, _FORMS.value)]


def measure_all() -> None:
    print(f"{jax.devices()[0].device_kind}, {jax.device_count()} device(s), jax {jax.__version__}")
    print("group     N  form         ms  times literal  temporaries GiB  peak GiB  exact     loss")
    literal = {}
    for g, n, form in cells():
        done = subprocess.run(
            [sys.executable, __file__, f"--cell={form},{n},{g}", f"--limit_gb={_LIMIT.value}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(f"{g:5} {n:5}  {form:<8} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        cell = json.loads(done.stdout.strip().splitlines()[-1])
        if "ms" not in cell:
            print(f"{g:5} {n:5}  {form:<8}  not run {'':>15} {cell['temporaries']:12.2f}", flush=True)
            continue
        literal |= {(g, n): cell["ms"]} if form == "literal" else {}
        ratio = f"{literal[g, n] / cell['ms']:.1f}" if (g, n) in literal else "-"
        print(
            f"{g:5} {n:5}  {form:<8} {cell['ms']:8.0f} {ratio:>14} {cell['temporaries']:16.2f} {cell['peak']:9.2f} "
            f"{cell['exact']:6.3f} {cell['loss']:8.4f}",
            flush=True,
        )


def compile_for(topology: str) -> None:
    """One group on one chip, and on as many chips as hold 4 images of it each."""
    devices = compile_report.topology_devices(topology)
    print(f"{devices[0].device_kind}, compiled ahead of time, jax {jax.__version__}; per chip")
    print("group     N  form     chips  temporaries GiB      GFLOP  collectives")
    for g, n, form in cells():
        for chips in {1, g // 4} if form != "literal" else {1}:
            shardings = make_shardings(devices=devices[:chips])
            function = make_function(form, n, g, shardings)
            structs = {
                name: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(shardings.mesh, shardings.data.spec))
                for name, (shape, dtype) in shapes(g).items()
            }
            traced = function.trace(*arguments(structs))
            try:
                compiled = compile_report.compile_for(traced.lower(), devices[0])
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                print(f"{g:5} {n:5}  {form:<8} {chips:5}  does not fit: {str(error).splitlines()[0][:90]}", flush=True)
                continue
            found = find_collectives(compiled.as_text())
            said = ", ".join(f"{c.operations} {c.kind} {c.bytes / 1e6:.2f} MB" for c in found) or "none"
            print(
                f"{g:5} {n:5}  {form:<8} {chips:5} {compiled.memory_analysis().temp_size_in_bytes / 2**30:16.3f} "
                f"{count_flops(traced.jaxpr.jaxpr) / chips / 1e9:10.1f}  {said}",
                flush=True,
            )


def paper_step() -> ml_collections.ConfigDict:
    c = config.default_config()
    recipes.paper_network(c, "r50")
    return c


def traffic_of_the_step(topology: str) -> None:
    """What the compiled step of 16 labelled and 16 other images launches and moves on one GPU, at 513 x 513."""
    devices = compile_report.topology_devices(topology)
    if devices[0].platform != "gpu":
        raise UserError(f"--share --topology={topology}: memory traffic is read of GPUs alone, expected e.g. h200")
    c, shardings = paper_step(), make_shardings(devices=devices[:1])
    c.batch_labeled = c.batch_unlabeled = 16
    bandwidth = CHIPS[shardings.mesh.devices.flat[0].device_kind].hbm
    print("form         N  kernels       GB  share  ms at full bandwidth", flush=True)
    without = None
    for form, n in (("none", 0), *itertools.product([f for f in _FORMS.value if f != "literal"], _NEGATIVES.value)):
        if form != "none":
            c.update_from_flattened_dict({"loss.sampling": form, "loss.num_negatives": int(n)})
        c.loss.contrast_weight = 0.0 if form == "none" else 0.3
        kernels, size = compile_report.compile_step(c, num_classes=CLASSES, shardings=shardings)[1].traffic
        without = without or size
        share = (size - without) / size
        print(f"{form:<8} {n:>5} {kernels:8} {size / 1e9:8.1f} {share:6.2%} {1e3 * size / bandwidth:12.1f}", flush=True)


def share_of_the_step() -> None:
    """Products and convolutions of the step of ResNet-50 at 513 x 513, groups of 4, of 64 labelled and 64 others."""
    c, shardings = paper_step(), make_shardings(1)

    def flops(weight: float, form: str, negatives: int) -> float:
        c.update_from_flattened_dict(
            {"loss.contrast_weight": weight, "loss.sampling": form, "loss.num_negatives": negatives}
        )
        return compile_report.step_flops(c, num_classes=CLASSES, shardings=shardings)

    without = flops(0.0, "window", 200)
    print(f"step without contrast {without / 1e12:.1f} TFLOP for {c.batch_labeled + c.batch_unlabeled} images")
    print("form         N    TFLOP   share of the step")
    for form, n in itertools.product([form for form in _FORMS.value if form != "literal"], map(int, _NEGATIVES.value)):
        whole = flops(0.3, form, n)
        print(f"{form:<8} {n:5} {(whole - without) / 1e12:8.3f} {(whole - without) / whole:12.2%}", flush=True)


def noise_of_the_draw() -> None:
    """Over draws: the loss's standard deviation, and sqrt(E |g - E g|^2) / |E g| of the gradient g."""
    print(f"{DRAWS} draws from the same features, N = 200, a group of 4")
    print("strategy                        form    block     loss    std     gradient noise")
    shardings = make_shardings(1)
    inputs = jax.device_put(arguments(random_inputs(4)), shardings.data)
    kinds = [("window", size) for size in BLOCKS] + [("full", 0)]
    for strategy, (form, block_size) in itertools.product(("uniform", "different_image_pseudo_label"), kinds):
        function = make_function(form, 200, 4, shardings, strategy=strategy, block_size=block_size)
        found = [jax.device_get(function(*inputs, draw)) for draw in range(DRAWS)]
        losses = [loss for (loss, _), _ in found]
        gradients = np.stack([np.concatenate([np.ravel(g) for g in gradient]) for _, gradient in found])
        variance = gradients.var(axis=0, ddof=1).sum()
        signal = np.sum(gradients.mean(axis=0) ** 2) - variance / DRAWS  # the mean's square is too large by its noise
        print(
            f"{strategy:<30}  {form:<8}{block_size or '-':>5} {np.mean(losses):8.4f} {np.std(losses, ddof=1):.5f} "
            f"{np.sqrt(variance / signal):12.3f}",
            flush=True,
        )


def main(argv: list[str]) -> None:
    del argv
    if _CELL.value:
        form, n, g = _CELL.value.split(",")
        print(json.dumps(measure(form, int(n), int(g))))
    elif _SHARE.value and _TOPOLOGY.value:
        traffic_of_the_step(_TOPOLOGY.value)
    elif _SHARE.value:
        share_of_the_step()
    elif _NOISE.value:
        noise_of_the_draw()
    elif _TOPOLOGY.value:
        compile_for(_TOPOLOGY.value)
    else:
        measure_all()


if __name__ == "__main__":
    cli.run(main)
