"""Trains a model, or continues a run.

python -m pc2seg_jax.train --config=configs/shapes.py --workdir=runs/first [--config.key=value ...]

Started again with the same --workdir and configuration, it continues after the last checkpoint.
"""

from absl import flags
from ml_collections import config_flags

from pc2seg_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, e.g. configs/shapes.py; keys are set with --config.key=value."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: new, empty, or of a run to continue.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    del argv
    from pc2seg_jax.evaluation import table
    from pc2seg_jax.training import train_and_evaluate

    print(table(train_and_evaluate(_CONFIG.value, _WORKDIR.value)))


if __name__ == "__main__":
    cli.run(main)
