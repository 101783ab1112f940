"""Evaluates runs from their folders."""

import sys
from collections.abc import Iterable, Iterator

import jax
import numpy as np
import tqdm

from pc2seg_jax import build, evaluation, processes, restoring, training, workdir
from pc2seg_jax.confusion_picture import confusion_svg
from pc2seg_jax.files import AnyPath, path_of, replace_text
from pc2seg_jax.inference import ONE_VIEW, InferenceViews, make_probabilities
from pc2seg_jax.step import make_eval_step
from pc2seg_jax.types import LabeledCrops


def _with_bar(batches: Iterable[LabeledCrops], count: int) -> Iterator[LabeledCrops]:
    """The batches, with a progress bar over the images where the lead has a terminal."""
    with tqdm.tqdm(total=count, unit="image", disable=not (processes.is_lead() and sys.stderr.isatty())) as bar:
        for batch in batches:
            yield batch
            bar.update(min(len(batch.image) * jax.process_count(), count - bar.n))


def evaluate_run(folder: AnyPath, which: str, split: str, views: InferenceViews = ONE_VIEW) -> tuple[dict, dict, str]:
    """Evaluates a checkpoint, stores the result in the run's folder, and returns (result, confusions, path).

    Args:
      which: "latest", "best" or a step. split: "val" or "labeled".

    Returns:
      result and confusions as `evaluation.read`; path: of the result.

    Raises:
      UserError: when the run or its data cannot be read, or the data are not those of training.
    """
    run = restoring.restore(folder, which)
    dataset = processes.together(lambda: build.build_dataset(run.config))
    workdir.claim(folder, run.config, training.describe_dataset(run.config, dataset))  # the same data as in training
    source = getattr(dataset, split)
    info = training.evaluation_info(run.info, source)
    eval_step = make_eval_step(
        make_probabilities(run.model, views),
        num_classes=len(info.class_names),
        mean_pixel=build.mean_pixel(run.config),
        ignore_id=info.ignore_id,
        shardings=run.shardings,
    )
    measured = evaluation.evaluate(
        eval_step,
        evaluation.networks_of(run.params, run.batch_stats, run.teacher),
        _with_bar(training.evaluation_batches(run.config, dataset, info, split, run.shardings), len(source.ids)),
        run.shardings,
        count=len(source.ids),
    )
    result = evaluation.summarize(
        measured, info, step=run.step, split=split, mean_without=run.config.eval.mean_without, views=views
    )
    path = processes.on_lead(lambda: _write(folder, result, measured, source.ids, views))
    return result, {"ids": source.ids} | {name: value.confusions for name, value in measured.items()}, path


def _write(folder: AnyPath, result: dict, measured: dict, ids: tuple[str, ...], views: InferenceViews) -> str:
    """`evaluation.write`, and the confusion matrix as a picture beside it."""
    path = evaluation.write(folder, result, measured, ids, views)
    picture = confusion_svg(np.array(result["confusion"]), list(result["iou"]))
    replace_text(path_of(path.removesuffix(".json") + "_confusion.svg"), picture)
    return path


def stored_or_evaluated(folder: AnyPath, which: str, split: str, views: InferenceViews = ONE_VIEW) -> tuple[dict, dict]:
    """(result, confusions) of a checkpoint, as `evaluation.read`; evaluated where the folder does not hold them."""
    step = restoring.find_step(folder, which)
    stored = processes.together(lambda: evaluation.read(folder, evaluation.file_name(step, split, views)))
    return stored or evaluate_run(folder, str(step), split, views)[:2]
