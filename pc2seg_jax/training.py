"""A run from top to bottom."""

import math
import pathlib
from collections.abc import Iterator

import jax
import ml_collections

from pc2seg_jax import build, evaluation
from pc2seg_jax import workdir as workdir_lib
from pc2seg_jax.checkpoints import Checkpoints
from pc2seg_jax.config import validate
from pc2seg_jax.data import pipeline
from pc2seg_jax.data.sources import Dataset
from pc2seg_jax.errors import UserError
from pc2seg_jax.failures import stop_if_not_finite
from pc2seg_jax.initialization import initialize, starting_state
from pc2seg_jax.parallel import Shardings, make_shardings, prefetch_to_devices
from pc2seg_jax.types import Crops, LabeledCrops, TrainState
from pc2seg_jax.writers import MetricWriter, Progress, flatten_metrics, peak_memory_gb

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
    needed = [16 * math.ceil((int(side) - 1) / 16) + 1 for side in dataset.val.sizes.max(0)]
    eval_size = tuple(int(given or need) for given, need in zip(config.eval.size, needed, strict=True))
    if any(size < side for size, side in zip(eval_size, dataset.val.sizes.max(0), strict=True)):
        raise UserError(
            f"config.eval.size is {tuple(config.eval.size)}, but the largest validation image needs {tuple(needed)}: "
            "raise it, set it to (0, 0) to fit, or shrink the images with --config.data.max_side"
        )
    sources = {name: getattr(dataset, name) for name in ("labeled", "unlabeled", "val")}
    splits = {role: workdir_lib.describe_split(source.name, source.ids) for role, source in sources.items()}
    return workdir_lib.DatasetInfo(dataset.class_names, dataset.palette.tolist(), dataset.ignore_id, eval_size, splits)


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
    """The batches that every evaluation of a run sees, rounded up to a multiple of the devices at hand."""
    devices = shardings.mesh.size
    return pipeline.evaluation_batches(
        getattr(dataset, split),
        batch_size=-(-config.eval.batch_size // devices) * devices,
        pad_size=info.eval_size,
    )


def evaluate(
    functions: build.Functions,
    state: TrainState,
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    info: workdir_lib.DatasetInfo,
    shardings: Shardings,
) -> dict:
    """The result of a state, and of its teacher, on val."""
    confusions = evaluation.evaluate(
        functions.eval_step,
        evaluation.networks_of(state.params, state.batch_stats, state.teacher),
        evaluation_batches(config, dataset, info, "val", shardings),
        shardings,
    )
    return evaluation.summarize(
        confusions, info, step=int(state.step), split="val", mean_without=config.eval.mean_without
    )


def scores(result: dict) -> dict[str, float]:
    """What the log keeps of a result."""
    log = {f"val/{name}": result[name] for name in ("miou", "pixel_accuracy")}
    return log | ({"val/teacher_miou": result["teacher"]["miou"]} if "teacher" in result else {})


def warn_of_draws(values: dict[str, float], config: ml_collections.ConfigDict) -> str:
    """A sentence where anchors have fewer negatives than they should, for the window or for the group; else ""."""
    wanted = config.loss.num_negatives
    for name in (name.removesuffix("/exact_fraction") for name in values if name.endswith("/exact_fraction")):
        exact, found = values[f"{name}/exact_fraction"], values[f"{name}/num_negatives"]
        if exact < ENOUGH:
            return (
                f"warning: {1 - exact:.0%} of the anchors are certain of fewer than {wanted} negatives in their window "
                "and use those: raise --config.loss.window (0: five candidates per negative, at least 1024) or lower "
                "--config.loss.num_negatives in a new run"
            )
        if found < ENOUGH * wanted:
            return (
                f"warning: anchors have {found:.1f} negatives on average instead of {wanted}, because their groups "
                "offer no more pixels that may be of another class: lower --config.loss.num_negatives, or raise "
                "--config.group_size, in a new run"
            )
    return ""


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path, shardings: Shardings | None = None
) -> dict:
    """Trains, or continues, the run of `workdir` and returns the evaluation of its last step.

    Every `config.eval.every` steps, and at the end, the state is evaluated on val and checkpointed.

    Raises:
      UserError: on a configuration, dataset or workdir that cannot be used, and on a step that is not finite.
    """
    workdir = pathlib.Path(workdir)
    validate(config, build.CHOICES)
    shardings = shardings or make_shardings()
    build.check_devices(config, shardings)
    dataset = build.build_dataset(config)
    info = describe_dataset(config, dataset)
    functions = build.build_functions(
        config, num_classes=len(dataset.class_names), ignore_id=dataset.ignore_id, shardings=shardings
    )
    if config.init_from and not (workdir / "config.json").exists():  # a wrong file must not bind the folder to its name
        initialize(config, dataset.class_names, *jax.eval_shape(functions.model.init, jax.random.key(0)))
    workdir_lib.claim(workdir, config, info)

    with Checkpoints(workdir, create=True) as checkpoints:
        state, origin = starting_state(config, dataset.class_names, functions.init, checkpoints, shardings)
        start = int(state.step)
        images = config.batch_labeled + (config.batch_unlabeled if config.objective != "supervised" else 0)
        progress = Progress(start, config.steps, images)
        writer = MetricWriter(workdir, start)
        for role, split in info.splits.items():
            progress.message(f"{role}: {split.count} images ({split.name}, sha256 {split.sha256[:8]})")
        progress.message(f"steps {start} to {config.steps}, {workdir}, from {origin}")

        result, metrics, crops, warned = None, None, None, False
        batches = prefetch_to_devices(training_batches(config, dataset, start), shardings.data)
        try:
            for step in range(start + 1, config.steps + 1):
                logs = step % config.log_every == 0 or step == config.steps
                evaluates = step % config.eval.every == 0 or step == config.steps
                before, crops = (metrics, crops), next(batches)
                norms = {}
                if logs and config.log_gradient_norms:
                    with progress.paused():
                        norms = jax.block_until_ready(functions.gradient_norms(state, crops))
                state, metrics = functions.step(step)(state, crops)
                # One step queues behind the other, and no more batches than theirs.
                for done, of in (before, *([(metrics, crops)] if logs or evaluates else [])):
                    if done is not None:
                        stop_if_not_finite(done, state, of, workdir)
                if step in (start + 1, config.loss.delay + 1):  # compiled in this step
                    jax.block_until_ready(metrics)
                    progress.start(step)
                if logs:
                    values = flatten_metrics(metrics | norms, info.class_names)
                    rate = progress.update(step, values["loss"])
                    seconds = writer.seconds + progress.seconds
                    costs = {"images_per_second": rate, "seconds": seconds, "memory_gb": peak_memory_gb()}
                    writer.write(step, values | costs)
                    if not warned and (warning := warn_of_draws(values, config)):
                        progress.message(warning)
                        warned = True
                if evaluates:
                    with progress.paused():
                        result = evaluate(functions, state, config, dataset, info, shardings)
                        evaluation.write(workdir, result)
                        progress.miou = result["miou"]
                        writer.write(step, scores(result))
                        progress.message(f"step {step}: val mIoU {result['miou']:.2f} %")
                        checkpoints.save(state, result["miou"])
        finally:
            progress.close()
            writer.close()
        return result or evaluate(functions, state, config, dataset, info, shardings)
