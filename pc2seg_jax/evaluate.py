"""Evaluates a checkpoint of a run; needs only the run's folder and its data.

python -m pc2seg_jax.evaluate --workdir=runs/first [--step=N|best|latest] [--split=val]
"""

from absl import flags

from pc2seg_jax import cli
from pc2seg_jax.files import path_of

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
_STEP = flags.DEFINE_string("step", "latest", "Which checkpoint: a step, best or latest.")
cli.define_process_flags()
_SPLIT = flags.DEFINE_enum("split", "val", ["val", "labeled"], "Which images.")


def main(argv: list[str]) -> None:
    del argv
    cli.join_processes()
    from pc2seg_jax import build, evaluation, processes, restoring, training, workdir
    from pc2seg_jax.step import make_eval_step

    folder = path_of(_WORKDIR.value)
    run = restoring.restore(folder, _STEP.value)
    dataset = processes.together(lambda: build.build_dataset(run.config))
    workdir.claim(folder, run.config, training.describe_dataset(run.config, dataset))  # the same data as in training
    eval_step = make_eval_step(
        run.model,
        num_classes=len(run.info.class_names),
        mean_pixel=build.mean_pixel(run.config),
        ignore_id=run.info.ignore_id,
        shardings=run.shardings,
    )
    batches = training.evaluation_batches(run.config, dataset, run.info, _SPLIT.value, run.shardings)
    networks = evaluation.networks_of(run.params, run.batch_stats, run.teacher)
    confusions = evaluation.evaluate(eval_step, networks, batches, run.shardings)
    result = evaluation.summarize(
        confusions, run.info, step=run.step, split=_SPLIT.value, mean_without=run.config.eval.mean_without
    )
    path = processes.on_lead(lambda: evaluation.write(folder, result))
    if processes.is_lead():
        print(evaluation.table(result))
        print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main)
