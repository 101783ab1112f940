"""Will it fit? Compiles the training step of a configuration and prints memory, operations and communication.

python -m pc2seg_jax.compile_tpu --config=configs/folder.py --topology=v5e:4x4 [--config.key=value ...]

With --topology, for the chips of a pod that is not at hand: needs their compiler, `pip install libtpu==0.0.52`, and no
TPU. For GPUs that are not at hand, --topology=h200 (or h100, a100; h200:8 for eight): the compiler is in the package
jax-cuda12-plugin, of jax's version. Without, for the devices of this machine. No data is read; the number of classes is
a flag.
"""

import jax
from absl import flags
from ml_collections import config_flags

from pc2seg_jax import build, cli, compile_report
from pc2seg_jax.errors import UserError
from pc2seg_jax.parallel import make_shardings
from pc2seg_jax.validation import validate

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, e.g. configs/folder.py; keys are set with --config.key=value."
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", "", "Kind and shape of a TPU slice, e.g. v5e:2x4, v5e:16x16, v6e:4x4, or h200:8; empty: this machine."
)
_CLASSES = flags.DEFINE_integer("num_classes", 21, "Classes, which the dataset would tell.", lower_bound=2)
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    del argv
    config = _CONFIG.value
    config.data.root = config.data.root or "not read"
    validate(config, build.CHOICES)
    shardings = make_shardings(devices=compile_report.topology_devices(_TOPOLOGY.value))
    build.check_devices(config, shardings)
    try:
        _, report = compile_report.compile_step(config, num_classes=_CLASSES.value, shardings=shardings)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"the step does not fit: {str(error).splitlines()[0]}; try a larger --config.accumulate, "
            "--config.model.remat=true, smaller batches or more devices"
        ) from error
    print(compile_report.table(report))


if __name__ == "__main__":
    cli.run(main)
