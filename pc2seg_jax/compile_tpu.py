"""Will it fit? Compiles the training step of a configuration and prints memory, operations and communication.

python -m pc2seg_jax.compile_tpu --config=configs/folder.py --topology=v5e:4x4 [--config.key=value ...]

With --topology, for the chips of a pod that is not at hand: needs `pip install libtpu`, and no TPU. Without, for the
devices of this machine. No data is read; the number of classes is a flag.
"""

import os

import jax
from absl import flags
from ml_collections import config_flags

from pc2seg_jax import build, cli, compile_report
from pc2seg_jax.config import validate
from pc2seg_jax.errors import UserError
from pc2seg_jax.parallel import make_shardings

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, e.g. configs/folder.py; keys are set with --config.key=value."
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", "", "Kind and shape of a TPU slice, e.g. v5e:2x4, v5e:16x16, v6e:4x4; empty: this machine."
)
_CLASSES = flags.DEFINE_integer("num_classes", 21, "Classes, which the dataset would tell.", lower_bound=2)
flags.mark_flag_as_required("config")


def _devices(topology: str) -> list:
    """The devices of a topology, or those at hand."""
    if not topology:
        return jax.devices()
    # libtpu otherwise asks a metadata server, which exists on TPU machines only, complains about what it did not find,
    # and serves one process at a time.
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
        ("TPU_STDERR_LOG_LEVEL", "3"),
        ("TPU_MIN_LOG_LEVEL", "3"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # never start the TPU runtime of the library
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except Exception as error:  # the library raises several types, all for the same two reasons
        raise UserError(
            f"--topology={topology} cannot be described ({error}): expected a kind and a shape such as v5e:2x4, and "
            "the compiler of TPUs, which `pip install libtpu` installs"
        ) from error


def main(argv: list[str]) -> None:
    del argv
    config = _CONFIG.value
    config.data.root = config.data.root or "not read"
    validate(config, build.CHOICES)
    shardings = make_shardings(devices=_devices(_TOPOLOGY.value))
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
