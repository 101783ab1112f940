"""Trains a model, or continues a run.

python -m pc2seg_jax.train --config=configs/shapes.py --workdir=runs/first [--config.key=value ...]

Started again with the same --workdir and configuration, it continues after the last checkpoint. With --replay, and no
--config, it computes the step again that was not finite and stopped the run of --workdir, loss by loss.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from pc2seg_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, e.g. configs/shapes.py; keys are set with --config.key=value."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: new, empty, or of a run to continue.")
_REPLAY = flags.DEFINE_bool("replay", False, "Only look again at the step that stopped the run of --workdir.")
flags.mark_flag_as_required("workdir")


@flags.multi_flags_validator(["config", "replay"], "--config is missing: name one of configs/, e.g. configs/shapes.py")
def _names_a_config(values: dict) -> bool:
    return values["config"] is not None or values["replay"]


def main(argv: list[str]) -> None:
    del argv
    if _REPLAY.value:
        from pc2seg_jax.failures import replay

        print(replay(pathlib.Path(_WORKDIR.value)))
        return
    from pc2seg_jax.evaluation import table
    from pc2seg_jax.training import train_and_evaluate

    print(table(train_and_evaluate(_CONFIG.value, _WORKDIR.value)))


if __name__ == "__main__":
    cli.run(main)
