"""Eight virtual CPU devices for every test, and the tiny run that the tests of the upper layers share."""

import importlib.metadata
import os
import tempfile

# Must be set before JAX asks for its devices. Compiling is most of a test's time: without the optimiser, and with the
# plain code generator, the training step compiles in a fifth of the time, to the same function; in one module rather
# than one per core, it spares the copies, and the cores have other tests.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    # Later ones end the process when they read a flag that is gone.
    + (" --xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib") < "0.11" else ""),
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# One folder for the processes of pytest-xdist and for the commands that tests start, which inherit the environment.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="pc2seg_jax_tests_")  # removed when the process that made it ends
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import contextlib
import gc
import io
import json
import runpy
import shutil
import sys
import types
import warnings

import jax
import numpy as np
import pytest
import stored_results

jax.config.update("jax_num_cpu_devices", 8)
gc.set_threshold(100_000, 50, 50)  # a quarter of the time of tracing went into looking for garbage among what stays

NUM_CLASSES, IGNORE = 7, 255

# Files of few tests that take minutes: first, so that one process does not end with them alone.
LONG = ("test_walk", "test_distributed", "test_sweep", "test_report_browser", "test_export")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def _tiny_config(**changes):
    """A configuration that compiles in seconds; keys are dotted, with `__` for the dot."""
    from pc2seg_jax.config import default_config

    c = default_config()
    c.update_from_flattened_dict(
        {
            "steps": 6,
            "batch_labeled": 8,
            "batch_unlabeled": 8,
            "group_size": 2,
            "teacher_momentum": 0.9,
            "data.dataset": "shapes",
            "data.num_labeled": 3,
            "data.num_unlabeled": 5,
            "data.num_val": 5,
            "augment.crop_size": (33, 33),
            "augment.scales": (0.75, 1.0),
            "augment.cutout_size": 8,
            "model.backbone": "resnet14_beta",
            "model.width": 4,
            "model.head_width": 8,
            "model.low_level_width": 4,
            "model.multi_grid": (2,),
            "model.aspp_rates": (2,),
            "model.head_decay": 0.95,
            "model.projection_dim": 8,
            "model.dtype": "float32",
            "loss.num_negatives": 10,
            "optim.learning_rate": 0.01,
            "eval.every": 2,
            "eval.batch_size": 4,
            "log_every": 1,
        }
    )
    c.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return c


@pytest.fixture(scope="session")
def tiny_config():
    return _tiny_config


def random_crops(config, *, seed=0, with_labels=False):
    """A batch of noise with random labels, a tenth of them ignored, some padding, colours and a corner under Cutout."""
    from pc2seg_jax.types import Crops, LabeledCrops, UnlabeledCrops

    rng = np.random.default_rng(seed)
    size, b, u = tuple(config.augment.crop_size), config.batch_labeled, config.batch_unlabeled

    def image(count):
        return rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)

    def label(count):
        ids = rng.integers(0, NUM_CLASSES, (count, *size), dtype=np.uint8)
        return np.where(rng.uniform(size=ids.shape) < 0.1, IGNORE, ids).astype(np.uint8)

    def window(count, top, left, bottom, right):
        return np.tile(np.array([top, left, bottom, right], np.int32), (count, 1))

    unlabeled = UnlabeledCrops(
        image=image(u),
        window=window(u, 0, 0, size[0] - 3, size[1]),
        cutout=window(u, size[0] - 8, size[1] - 8, *size),
        order=rng.permuted(np.tile(np.arange(4, dtype=np.int32), (u, 1)), axis=1),
        amounts=rng.uniform((-0.2, 0.8, 0.8, -0.1), (0.2, 1.2, 1.2, 0.1), (u, 4)).astype(np.float32),
        contrast_mean=np.full((u, 3), 0.5, np.float32),
        label=label(u) if with_labels else None,
    )
    return Crops(LabeledCrops(image(b), label(b), window(b, 0, 2, *size)), unlabeled)


@pytest.fixture(scope="session")
def make_crops():
    return random_crops


def random_batch(config, *, seed=0, with_labels=False):
    """Views of noise with random labels, a tenth of them ignored, and a corner of every strong view not valid."""
    from pc2seg_jax.types import Batch, Labeled, Unlabeled

    rng = np.random.default_rng(seed)
    size = config.augment.crop_size

    def image(count):
        return rng.uniform(0, 255, (count, *size, 3)).astype(np.float32)

    def label(count):
        ids = rng.integers(0, NUM_CLASSES, (count, *size)).astype(np.int32)
        return np.where(rng.uniform(size=ids.shape) < 0.1, IGNORE, ids).astype(np.int32)

    u = config.batch_unlabeled
    valid = np.ones((u, *size), bool)
    valid[:, -8:, -8:] = False
    unlabeled = Unlabeled(image(u), image(u), valid, label(u) if with_labels else None)
    return Batch(Labeled(image(config.batch_labeled), label(config.batch_labeled)), unlabeled)


@pytest.fixture(scope="session")
def make_batch():
    return random_batch


@pytest.fixture(scope="session")
def make_parts():
    """`make_parts(config, num_devices)`: the functions a run compiles; made once per session where they are equal."""
    from pc2seg_jax import build, parallel

    made = {}

    def make(config, num_devices=1):
        # Nothing compiled depends on these.
        irrelevant = {"data", "augment", "eval", "log_every", "checkpoint_every", "init_from"}
        relevant = {key: value for key, value in config.to_dict().items() if key not in irrelevant}
        name = json.dumps([relevant, num_devices])
        if name not in made:
            shardings = parallel.make_shardings(num_devices)
            functions = build.build_functions(config, num_classes=NUM_CLASSES, ignore_id=IGNORE, shardings=shardings)
            made[name] = types.SimpleNamespace(
                shardings=shardings, step=functions.step, norms=functions.norms, **functions._asdict()
            )
        return made[name]

    return make


@pytest.fixture(scope="session")
def train(make_parts):
    """`train(config, workdir)`: `train_and_evaluate` on one device; equal runs share what they compile."""
    from pc2seg_jax import training

    def run(config, workdir):
        parts = make_parts(config)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training.build, "build_functions", lambda *args, **kwargs: parts)
            return training.train_and_evaluate(config, workdir, parts.shardings)

    return run


@pytest.fixture(scope="session")
def report_runs(tmp_path_factory, train, tiny_run):
    """Folders of a supervised baseline and of a copy of the tiny run, with all that an evaluation may have stored."""
    folder = tmp_path_factory.mktemp("report_runs")
    train(_tiny_config(objective="supervised"), folder / "baseline")
    shutil.copytree(tiny_run.workdir, folder / "tiny")
    for number, name in enumerate(("baseline", "tiny")):
        stored_results.add(folder / name, seed=number)
    return [folder / "baseline", folder / "tiny"]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, train):
    """The folder of a finished tiny run, its configuration and its last result; not to be changed."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    config = _tiny_config()
    return types.SimpleNamespace(workdir=workdir, config=config, result=train(config, workdir))


@pytest.fixture(scope="session", autouse=True)
def scratch(tmp_path_factory):
    """Temporary files among pytest's folders, which it removes: TFDS leaves an empty one per builder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("scratch")))
        patch.setenv("TMPDIR", tempfile.tempdir)
        yield


@pytest.fixture
def command(monkeypatch):
    """`command("train", "--workdir=...") -> (status, stdout, stderr)`, in this process."""

    from absl import app, flags

    def without_setup(main, flags_parser):  # absl refuses to set itself up twice in one process
        flags.DEFINE_flag(app.HelpFlag())
        sys.exit(main(flags_parser(sys.argv)))

    def run(name, *arguments):
        known = set(flags.FLAGS)
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(app, "run", without_setup)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with pytest.raises(SystemExit) as end:
                    runpy.run_module(f"pc2seg_jax.{name}", run_name="__main__", alter_sys=True)
        finally:
            for flag in set(flags.FLAGS) - known:
                delattr(flags.FLAGS, flag)
            flags.FLAGS.unparse_flags()
            sys.modules.pop("config_config", None)  # the last configuration file, which the next would be loaded into
        return end.value.code or 0, out.getvalue(), err.getvalue()

    return run
