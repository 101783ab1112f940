"""A step that is not finite: what is kept of it, and looking at it again.

`<workdir>/failure/<step>/` holds `state`, as it was before the step, `batch_<process>.npz`, the batch (this host's rows
of it), and `metrics.json`.
"""

import json
import math
import pathlib

import jax
import ml_collections
import numpy as np

from pc2seg_jax import build, processes
from pc2seg_jax import workdir as workdir_lib
from pc2seg_jax.checkpoints import load_state, save_state
from pc2seg_jax.errors import UserError
from pc2seg_jax.files import AnyPath, read_arrays
from pc2seg_jax.parallel import Shardings, make_shardings, shard_batch
from pc2seg_jax.types import Crops, LabeledCrops, TrainState, UnlabeledCrops

STREAMS = {"labeled": LabeledCrops, "unlabeled": UnlabeledCrops}


def stop_if_not_finite(metrics: dict, state: TrainState, crops: Crops, workdir: AnyPath) -> None:
    """Ends the run where the step with these metrics and crops was not finite.

    Args:
      state: of after the step, or of a later one: `step.make_train_step` leaves it as it was before.

    Raises:
      UserError: naming the step, what is not finite, and where state and batch are.
    """
    if float(metrics["finite"]):
        return
    step = -int(state.step)
    values = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}
    wrong = [
        f"{name} is {x}" for name, x in values.items() if name.startswith(("loss", "grad")) and not math.isfinite(x)
    ]
    folder = workdir / "failure" / str(step)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{stream}.{name}": _rows_of_this_host(x)
        for stream in STREAMS
        for name, x in (getattr(crops, stream) or LabeledCrops(None, None, None))._asdict().items()
        if x is not None
    }
    with (folder / f"batch_{jax.process_index()}.npz").open("wb") as file:
        np.savez(file, **arrays)
    (folder / "metrics.json").write_text(
        json.dumps({name: str(value) for name, value in values.items()}, indent=2) + "\n"
    )
    save_state(folder / "state", state)
    raise processes.Agreed(  # all processes see the same metrics
        f"step {step} is not finite ({', '.join(wrong)}): the run stopped before learning from it, state and batch are "
        f"in {folder}; look at them with python -m pc2seg_jax.train --workdir={workdir} --replay, and start again with "
        "a smaller --config.optim.learning_rate or another --config.seed in a new --workdir"
    )


def _rows_of_this_host(x: jax.Array) -> np.ndarray:
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def _load_crops(folder: AnyPath, config: ml_collections.ConfigDict) -> Crops:
    """The whole batch, from the rows of all processes.

    Raises:
      UserError: when those of a process are missing or damaged.
    """
    hosts = []
    while (path := folder / f"batch_{len(hosts)}.npz").is_file():
        hosts.append(read_arrays(path, "restore it to replay the step"))
    arrays = {name: np.concatenate([host[name] for host in hosts]) for name in (hosts[0] if hosts else ())}
    if len(arrays.get("labeled.image", ())) != config.batch_labeled:
        raise UserError(
            f"{folder} holds {len(arrays.get('labeled.image', ()))} of {config.batch_labeled} labelled images, in "
            f"{len(hosts)} files batch_0.npz and so on: copy there those of the other hosts to replay the step"
        )
    streams = {
        stream: kind(**{name: arrays[f"{stream}.{name}"] for name in kind._fields if f"{stream}.{name}" in arrays})
        for stream, kind in STREAMS.items()
        if f"{stream}.image" in arrays
    }
    return Crops(**streams)


def find_failure(workdir: AnyPath) -> pathlib.Path:
    """The folder of the last step that was not finite.

    Raises:
      UserError: when there is none.
    """
    steps = sorted(int(path.name) for path in (workdir / "failure").glob("*") if path.name.isdecimal())
    if not steps:
        raise UserError(f"--workdir={workdir} has nothing to replay: no step of this run was stopped as not finite")
    return workdir / "failure" / str(steps[-1])


def replay(workdir: AnyPath, shardings: Shardings | None = None) -> str:
    """Computes the step that stopped a run again, and in float32 where it was not; the metrics as text.

    Raises:
      UserError: when `workdir` is not a run's, no step of it was stopped, or a part of the batch is missing.
    """
    config, info = workdir_lib.load(workdir)
    folder = find_failure(workdir)
    shardings = shardings or make_shardings()
    lines = [f"step {folder.name} of {workdir}, {config.model.dtype}", *_compute(config, info, folder, shardings)]
    if config.model.dtype != "float32":
        config.model.dtype = "float32"
        lines += ["the same in float32", *_compute(config, info, folder, shardings)]
    return "\n".join(lines)


def _compute(
    config: ml_collections.ConfigDict, info: workdir_lib.DatasetInfo, folder: AnyPath, shardings: Shardings
) -> list[str]:
    functions = build.build_functions(
        config, num_classes=len(info.class_names), ignore_id=info.ignore_id, shardings=shardings
    )
    shapes = jax.eval_shape(functions.init, 0)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings.replicated), shapes)
    stopped = load_state(folder / "state", like)
    state = stopped._replace(step=-1 - stopped.step)
    crops = shard_batch(_load_crops(folder, config), shardings.data)
    broken = [
        jax.tree_util.keystr(path)
        for path, x in jax.tree_util.tree_leaves_with_path((state.params, state.batch_stats))
        if not np.isfinite(np.asarray(x)).all()
    ]
    number = int(folder.name)
    norms = functions.norms(number)(state, crops)
    _, metrics = functions.step(number)(state, crops)
    values = {name: float(x) for name, x in (metrics | norms).items() if np.ndim(x) == 0 and not math.isnan(x)}
    wrong = {name: "nan" for name in metrics | norms if name.startswith(("loss", "grad")) and name not in values}
    text = [f"  {name:<32} {value}" for name, value in (values | wrong).items()]
    return [*text, f"  parameters and statistics that are not finite: {', '.join(broken) or 'none'}"]
