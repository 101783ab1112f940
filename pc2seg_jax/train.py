"""Trains a model, or continues a run.

python -m pc2seg_jax.train --config=configs/shapes.py --workdir=runs/first [--config.key=value ...]

Started again with the same --workdir and configuration, it continues after the last checkpoint. SIGTERM and Ctrl-C save
one first; exit status 75 means: start the same command again. Several processes, one per host or GPU, form one run:
they find one another on TPU pods, Slurm and Open MPI, or by --coordinator, --num_processes and --process_id. With
--replay, and no --config, it computes the step again that was not finite and stopped the run, loss by loss.
"""

import sys

from absl import flags
from ml_collections import config_flags

from pc2seg_jax import cli
from pc2seg_jax.errors import UserError
from pc2seg_jax.files import path_of

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, e.g. configs/shapes.py; keys are set with --config.key=value."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: new, empty, or of a run to continue.")
_REPLAY = flags.DEFINE_bool("replay", False, "Only look again at the step that stopped the run of --workdir.")
_PROFILE = flags.DEFINE_string("profile_steps", None, "first-last: steps to record for xprof, in WORKDIR/profile.")
cli.define_process_flags()
flags.mark_flag_as_required("workdir")


def _profile_steps(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(f"--profile_steps={text} is not of the form first-last, e.g. 10-15")
    return int(first), int(last)


@flags.multi_flags_validator(["config", "replay"], "--config is missing: name one of configs/, e.g. configs/shapes.py")
def _names_a_config(values: dict) -> bool:
    return values["config"] is not None or values["replay"]


def main(argv: list[str]) -> None:
    del argv
    if _REPLAY.value:
        from pc2seg_jax.failures import replay

        print(replay(path_of(_WORKDIR.value)))
        return
    profile_steps = _profile_steps(_PROFILE.value)
    cli.join_processes()
    from pc2seg_jax import processes
    from pc2seg_jax.evaluation import table
    from pc2seg_jax.training import train_and_evaluate

    try:
        with processes.lost_peers(_WORKDIR.value), processes.stop_requests() as stop:
            result = train_and_evaluate(
                _CONFIG.value,
                _WORKDIR.value,
                stop=stop,
                peer_timeout=flags.FLAGS.peer_timeout,
                profile_steps=profile_steps,
            )
    except processes.Resume as end:
        if processes.is_lead():
            print(end, flush=True)
        sys.exit(processes.RESUME)
    if processes.is_lead():
        print(table(result))


if __name__ == "__main__":
    cli.run(main)
