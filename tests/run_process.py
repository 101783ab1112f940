"""One process of a run in the tests: python run_process.py CHANGES [flags of pc2seg_jax.train].

CHANGES is JSON: changes to the tiny configuration, and what the test wants to see or to happen:
  "record": FILE     append a line per step with the CRC-32 of every row of this process's part of the batch
  "kill": {"process": I, "step": N, "signal": S}   sends the signal to this process, if it is I, before batch N is made,
                     once, if "once" names a file that may be made to remember it
"""

import json
import os
import pathlib
import sys
import zlib

import conftest  # noqa: F401 - asks for eight devices, which the processes of a run have together
import jax
import numpy as np
from absl import flags

HERE = pathlib.Path(__file__).resolve().parent


def row_sums(crops):
    """CRC-32 of every row over all arrays of a stream."""

    def of_stream(stream):
        arrays = [np.asarray(x) for x in stream if x is not None]
        return [zlib.crc32(b"".join(x[i].tobytes() for x in arrays)) for i in range(len(arrays[0]))]

    return [of_stream(stream) for stream in crops]


def main():
    changes = json.loads(sys.argv[1])
    record, kill = changes.pop("record", None), changes.pop("kill", None)
    from pc2seg_jax import cli, train, training

    make = training.training_batches

    def done():
        """Whether a former start has killed itself; the next one will know."""
        mark = kill.get("once")
        if mark is None or pathlib.Path(mark).exists():
            return mark is not None
        pathlib.Path(mark).touch()
        return False

    def batches(config, dataset, start):
        for step, crops in enumerate(make(config, dataset, start), start=start + 1):
            if kill and kill["step"] == step and kill["process"] == jax.process_index() and not done():
                os.kill(os.getpid(), kill["signal"])
            if record:
                with pathlib.Path(f"{record}.{jax.process_index()}").open("a") as file:
                    file.write(json.dumps({"step": step, "rows": row_sums(crops)}) + "\n")
            yield crops

    training.training_batches = batches
    config = HERE / "tiny_config.py"
    sys.argv[1:] = [f"--config={config}:{json.dumps(changes)}", *sys.argv[2:]]
    flags.FLAGS.set_default("verbosity", 0)
    cli.run(train.main)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", int(os.environ["DEVICES"]))
    main()
