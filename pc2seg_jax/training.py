"""A run from top to bottom."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import ml_collections

from pc2seg_jax import build, evaluation, processes
from pc2seg_jax import workdir as workdir_lib
from pc2seg_jax.checkpoints import Checkpoints
from pc2seg_jax.data import pipeline
from pc2seg_jax.data.sources import Dataset, Source
from pc2seg_jax.errors import UserError
from pc2seg_jax.failures import stop_if_not_finite
from pc2seg_jax.files import AnyPath, path_of
from pc2seg_jax.initialization import initialize, starting_state
from pc2seg_jax.parallel import Shardings, make_shardings, prefetch_to_devices
from pc2seg_jax.profiling import Profiler
from pc2seg_jax.types import Crops, LabeledCrops, TrainState
from pc2seg_jax.validation import validate
from pc2seg_jax.writers import RunLog, flatten_metrics

ENOUGH = 0.95  # share of the anchors, or of their negatives, below which the log says what is missing


def describe_dataset(config: ml_collections.ConfigDict, dataset: Dataset) -> workdir_lib.DatasetInfo:
    """What the run's folder keeps of a dataset. The evaluation size fits the largest validation image by default.

    Raises:
      UserError: when `config.eval.size` is too small for the validation images, or a class that does not exist is to
        be left out of the mean.
    """
    for name in config.eval.mean_without:
        if name not in dataset.class_names:
            raise UserError(
                f"config.eval.mean_without names {name!r}, expected among the classes: {', '.join(dataset.class_names)}"
            )
    needed = _fitting_size(dataset.val)
    eval_size = tuple(int(given or need) for given, need in zip(config.eval.size, needed, strict=True))
    if any(size < side for size, side in zip(eval_size, dataset.val.sizes.max(0), strict=True)):
        raise UserError(
            f"config.eval.size is {tuple(config.eval.size)}, but the largest validation image needs {needed}: "
            "raise it, set it to (0, 0) to fit, or shrink the images with --config.data.max_side"
        )
    sources = {name: getattr(dataset, name) for name in ("labeled", "unlabeled", "val")}
    splits = {role: workdir_lib.describe_split(source.name, source.ids) for role, source in sources.items()}
    return workdir_lib.DatasetInfo(dataset.class_names, dataset.palette.tolist(), dataset.ignore_id, eval_size, splits)


def _fitting_size(source: Source) -> tuple[int, int]:
    """(H, W) of the form 16k + 1 that hold every image."""
    return tuple(16 * math.ceil((int(side) - 1) / 16) + 1 for side in source.sizes.max(0))


def evaluation_info(info: workdir_lib.DatasetInfo, source: Source) -> workdir_lib.DatasetInfo:
    """`info` with an evaluation size that holds the images of another split than the validation images, too."""
    return info._replace(eval_size=tuple(map(max, info.eval_size, _fitting_size(source))))


def training_batches(config: ml_collections.ConfigDict, dataset: Dataset, start_step: int) -> Iterator[Crops]:
    """Global batches from `start_step` on (this host's rows of them), as numpy arrays."""
    settings = {
        "seed": config.seed,
        "start_step": start_step,
        "augment": build.build_augmentation(config),
        "shard": (jax.process_index(), jax.process_count()),
    }
    labeled = pipeline.labeled_stream(dataset.labeled, batch_size=config.batch_labeled, **settings)
    if config.objective == "supervised":
        yield from map(Crops, labeled)
    unlabeled = pipeline.unlabeled_stream(dataset.unlabeled, batch_size=config.batch_unlabeled, **settings)
    yield from map(Crops, labeled, unlabeled)


def evaluation_batches(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    info: workdir_lib.DatasetInfo,
    split: str,
    shardings: Shardings,
) -> Iterator[LabeledCrops]:
    """This host's rows of the batches that every evaluation sees, rounded up to a multiple of the devices at hand."""
    devices = shardings.mesh.size
    return pipeline.evaluation_batches(
        getattr(dataset, split),
        batch_size=-(-config.eval.batch_size // devices) * devices,
        pad_size=info.eval_size,
        shard=(jax.process_index(), jax.process_count()),
    )


def scores(result: dict) -> dict[str, float]:
    """What the log keeps of a result."""
    log = {f"val/{name}": result[name] for name in ("miou", "pixel_accuracy")}
    return log | ({"val/teacher_miou": result["teacher"]["miou"]} if "teacher" in result else {})


def warn_of_draws(values: dict[str, float], config: ml_collections.ConfigDict) -> str:
    """A sentence where anchors have fewer negatives than they should, for the window or for the group; else ""."""
    wanted = config.loss.num_negatives
    for name in (name.removesuffix("/exact_fraction") for name in values if name.endswith("/exact_fraction")):
        missing = 1 - values[f"{name}/exact_fraction"] - values[f"{name}/scarce_fraction"]
        found = values[f"{name}/num_negatives"]
        if missing > 1 - ENOUGH:
            return (
                f"warning: {missing:.0%} of the anchors are certain of fewer than {wanted} negatives in their window "
                "and use those: raise --config.loss.window (0: about five candidates per negative) or lower "
                "--config.loss.num_negatives in a new run"
            )
        if found < ENOUGH * wanted:
            return (
                f"warning: anchors have {found:.1f} negatives on average instead of {wanted}, because their groups "
                "offer no more pixels that may be of another class: lower --config.loss.num_negatives, or raise "
                "--config.group_size, in a new run"
            )
    return ""


def prepare_run(
    config: ml_collections.ConfigDict, workdir: AnyPath, shardings: Shardings
) -> tuple[Dataset, workdir_lib.DatasetInfo, build.Functions]:
    """Checks everything that can be checked before the first step, in every process, and claims the folder.

    Raises:
      UserError: in all processes, when one of them finds something that cannot be used.
    """

    def check() -> tuple[Dataset, workdir_lib.DatasetInfo, build.Functions]:
        validate(config, build.CHOICES)
        build.check_devices(config, shardings)
        dataset = build.build_dataset(config)
        info = describe_dataset(config, dataset)
        functions = build.build_functions(
            config, num_classes=len(dataset.class_names), ignore_id=dataset.ignore_id, shardings=shardings
        )
        return dataset, info, functions

    dataset, info, functions = processes.together(check)
    processes.check_same(config.to_json_best_effort() + str(info.splits))
    if config.init_from and processes.on_lead(lambda: not (workdir / "config.json").exists()):
        # A wrong file must not bind the folder to it.
        initialize(config, dataset.class_names, *jax.eval_shape(functions.model.init, jax.random.key(0)))
    processes.on_lead(lambda: workdir_lib.claim(workdir, config, info))
    return dataset, info, functions


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | AnyPath,
    shardings: Shardings | None = None,
    *,
    stop: Callable[[int], bool] = lambda step: False,
    peer_timeout: float = 300,
    profile_steps: tuple[int, int] | None = None,
) -> dict:
    """Trains, or continues, the run of `workdir` and returns the evaluation of its last step.

    Every `config.eval.every` steps, and at the end, the state is evaluated on val and checkpointed, and every
    `config.checkpoint_every` steps it is checkpointed.

    Args:
      stop: asked after every step whether to end here, with a checkpoint; the same answer in all processes.
      peer_timeout: seconds without a finished step after which a process of several gives up, see `processes.Watch`.
      profile_steps: (first, last) step to record for xprof, in `<workdir>/profile`; where they are over, none.

    Raises:
      UserError: on a configuration, dataset or workdir that cannot be used, and on a step that is not finite.
      processes.Resume: `stop` has said yes.
    """
    workdir = path_of(workdir)
    shardings = shardings or make_shardings()
    dataset, info, functions = prepare_run(config, workdir, shardings)
    with Checkpoints(workdir, create=True) as checkpoints, processes.Watch(peer_timeout, workdir) as watch:
        state, origin = starting_state(config, dataset.class_names, functions.init, checkpoints, shardings)
        start = int(state.step)
        images = config.batch_labeled + (config.batch_unlabeled if config.objective != "supervised" else 0)
        log = processes.together(
            functools.partial(RunLog, workdir, start_step=start, steps=config.steps, images_per_step=images)
        )
        for role, split in info.splits.items():
            log.message(f"{role}: {split.count} images ({split.name}, sha256 {split.sha256[:8]})")
        log.message(f"steps {start} to {config.steps}, {workdir}, from {origin}")
        run = Run(config, workdir, dataset, info, functions, shardings, checkpoints, log, watch)
        try:
            with Profiler(workdir / "profile", profile_steps) as profiler:
                result = take_steps(run, state, start, stop, profiler)
            log.summary()
        finally:
            log.close()
    return result


class Run(NamedTuple):
    """What the steps of a run need besides the state."""

    config: ml_collections.ConfigDict
    workdir: AnyPath
    dataset: Dataset
    info: workdir_lib.DatasetInfo
    functions: build.Functions
    shardings: Shardings
    checkpoints: Checkpoints
    log: RunLog
    watch: processes.Watch

    def evaluate(self, state: TrainState) -> tuple[dict, dict[str, evaluation.Measured]]:
        """The result of a state, and of its teacher, on val; what it was made from."""
        with self.log.apart("evaluation"):
            batches = evaluation_batches(self.config, self.dataset, self.info, "val", self.shardings)
            measured = evaluation.evaluate(
                self.functions.eval_step,
                evaluation.networks_of(state.params, state.batch_stats, state.teacher),
                self.watch.watched(batches),
                self.shardings,
                count=len(self.dataset.val.ids),
            )
            without = self.config.eval.mean_without
            return evaluation.summarize(
                measured, self.info, step=int(state.step), split="val", mean_without=without
            ), measured

    def save(self, state: TrainState, miou: float | None = None) -> None:
        with self.log.apart("checkpoint"):
            self.checkpoints.save(state, miou)

    def evaluate_and_save(self, state: TrainState) -> dict:
        result, measured = self.evaluate(state)
        processes.on_lead(functools.partial(evaluation.write, self.workdir, result, measured, self.dataset.val.ids))
        self.log.evaluation(int(state.step), result["miou"], scores(result))
        self.save(state, result["miou"])
        return result


def take_steps(run: Run, state: TrainState, start: int, stop: Callable[[int], bool], profiler: Profiler) -> dict:
    """The steps start + 1 ... config.steps; the last evaluation. Arguments, errors: as `train_and_evaluate`."""
    config, log = run.config, run.log
    result, metrics, crops, warned = None, None, None, False
    batches = prefetch_to_devices(training_batches(config, run.dataset, start), run.shardings.data)
    for step in range(start + 1, config.steps + 1):
        logs = step % config.log_every == 0 or step == config.steps
        evaluates = step % config.eval.every == 0 or step == config.steps
        with log.clock.spent("input"):
            before, crops = (metrics, crops), next(batches)
        norms = {}
        if logs and config.log_gradient_norms:
            with log.apart("gradient norms"):
                norms = jax.block_until_ready(run.functions.norms(step)(state, crops))
        with profiler.step(step):
            state, metrics = run.functions.step(step)(state, crops)
        profiler.after(step, metrics)
        # One step queues behind the other, and no more batches than theirs.
        for done, of in (before, *([(metrics, crops)] if logs or evaluates else [])):
            if done is not None:
                stop_if_not_finite(done, state, of, run.workdir)
        if step in (start + 1, config.loss.delay + 1):  # compiled in this step
            jax.block_until_ready(metrics)
            log.start(step)
        run.watch.beat()
        if logs:
            values = flatten_metrics(metrics | norms, run.info.class_names)
            log.step(step, values)
            if not warned and (warning := warn_of_draws(values, config)):
                log.message(warning)
                warned = True
        if evaluates:
            result = run.evaluate_and_save(state)
        stops = stop(step) and step < config.steps
        if not evaluates and (stops or step % config.checkpoint_every == 0):
            stop_if_not_finite(metrics, state, crops, run.workdir)
            run.save(state)
        if stops:
            raise processes.Resume(
                f"stopped after step {step} of {config.steps} as asked, {run.workdir} has its checkpoint: the same "
                "command continues"
            )
        run.watch.beat()
    return result or run.evaluate(state)[0]
