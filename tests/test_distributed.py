"""Several real processes on this machine are one run: equal to one process, found, stopped, killed and continued."""

import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from pc2seg_jax import build, workdir
from pc2seg_jax.checkpoints import Checkpoints
from pc2seg_jax.errors import UserError
from pc2seg_jax.parallel import make_shardings
from pc2seg_jax.processes import Agreed, lost_peers

HERE = pathlib.Path(__file__).resolve().parent
DEVICES, STEPS, RESUME = 4, 6, 75
# Processes sum in another order. Whatever a step moves by that rounding changes the rounding of the next step, be it a
# weight or a running mean, which batch normalisation subtracts first; sooner or later a ReLU switches, and the gradient
# of so small a network differs by 2e-3. With steps too small to change a digit of an activation, activations are the
# same bits. Biases and running means, which begin at 0, do move.
SMALL_STEPS = {
    "optim.learning_rate": 1e-20,
    "model.backbone_decay": float(np.nextafter(1, 0)),
    "model.head_decay": float(np.nextafter(1, 0)),
}


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def start():
    """`start(folder, processes, ...)`: exit statuses, and what the processes of one run have printed."""

    def run(folder, count, *, flags=(), environment=None, record=None, kill=None, supervised=False, timeout=500):
        changes = SMALL_STEPS | {"checkpoint_every": 1, "eval.every": 3, "loss.strategy": "uniform"}
        changes |= {"record": str(record)} if record else {}
        changes |= {"kill": kill} if kill else {}
        port, processes = free_port(), []
        for i in range(count):
            own = {"DEVICES": str(DEVICES // count), "PYTHONPATH": str(HERE.parent)}
            known = [f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={i}"]
            if environment:
                own, known = own | environment(i, count, port), [f"--num_processes={count}"]
            command = [sys.executable, HERE / "run_process.py", json.dumps(changes), f"--workdir={folder}", *flags]
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            command += known if count > 1 else []
            if supervised:
                # The killed one comes back after the survivor has given up by itself; sooner, JAX aborts the survivor.
                command = ["bash", HERE.parent / "launch" / "supervise.sh", "--pause=45", "--", *command]
            processes.append(subprocess.Popen(command, env=os.environ | own, **streams))
        said = []
        try:
            for process in processes:
                said.append(process.communicate(timeout=timeout))
        finally:
            for process in processes:
                process.kill()
        return [process.returncode for process in processes], said

    return run


def slurm(process, count, port):
    job = {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count)}
    return job | {"SLURM_PROCID": str(process), "SLURM_LOCALID": str(process)}


def open_mpi(process, count, port):
    job = {"OMPI_COMM_WORLD_SIZE": str(count), "OMPI_MCA_orte_hnp_uri": f"{port}.0;tcp://127.0.0.1:{port}"}
    return job | {"OMPI_COMM_WORLD_RANK": str(process), "OMPI_COMM_WORLD_LOCAL_RANK": str(process)}


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def flat(tree):
    return np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)])


def begin_and_end(folder):
    """The states before the first step of a run and after its last."""
    config, info = workdir.load(folder)
    functions = build.build_functions(
        config, num_classes=len(info.class_names), ignore_id=info.ignore_id, shardings=make_shardings(1)
    )
    first = functions.init(config.seed)
    with Checkpoints(folder) as checkpoints:
        return jax.device_get((first, checkpoints.restore_newest(first)))


def rows(record):
    """{step: rows of both streams of the global batch}; a step that was begun twice must have had the same rows."""
    parts = {}
    for path in sorted(record.parent.glob(f"{record.name}.*"), key=lambda path: int(path.suffix[1:])):
        for line in path.read_text().splitlines():
            line = json.loads(line)
            parts.setdefault(line["step"], []).append(line["rows"])
    return {
        step: [list(itertools.chain(*stream)) for stream in zip(*found, strict=True)] for step, found in parts.items()
    }


def assert_same_run(folder, reference):
    """The same steps logged once each, with the same metrics; the same movement of every state; the same evaluation."""
    ours, theirs = metrics(folder), metrics(reference)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            np.testing.assert_allclose(mine[name], other[name], rtol=1e-5, err_msg=f"{name}, step {mine['step']}")
    start, mine, other = *begin_and_end(folder), begin_and_end(reference)[1]
    for part in ("params", "batch_stats", "opt_state", "teacher"):
        before, moved, expected = (flat(getattr(state, part)) for state in (start, mine, other))
        distance = np.linalg.norm(expected - before)
        assert distance > 0
        assert np.linalg.norm(moved - expected) < 1e-5 * distance, part
    results = [json.loads((path / "evaluation" / f"{STEPS}_val.json").read_text()) for path in (folder, reference)]
    assert results[0]["split"] == results[1]["split"]
    np.testing.assert_allclose(results[0]["pixel_accuracy"], results[1]["pixel_accuracy"], atol=0.01)


@pytest.fixture(scope="module")
def reference(start, tmp_path_factory):
    """A run of one process with four devices: its folder, and the rows of its batches."""
    folder = tmp_path_factory.mktemp("reference")
    statuses, said = start(folder / "run", 1, record=folder / "rows")
    assert statuses == [0], said
    return folder / "run", rows(folder / "rows")


def test_two_processes_then_one_then_two_are_one_run(start, reference, tmp_path):
    """SIGTERM to one of two (found by Slurm's variables), then to the one, then two by Open MPI's to the end."""
    folder = tmp_path / "run"
    expected = reference[1]
    for count, environment, stop in ((2, slurm, 2), (1, None, 4), (2, open_mpi, None)):
        kill = stop and {"process": count - 1, "step": stop, "signal": signal.SIGTERM}
        record = tmp_path / f"rows_until_{stop}"
        statuses, said = start(folder, count, environment=environment, record=record, kill=kill)
        assert statuses == [RESUME if stop else 0] * count, said
        found = rows(record)
        assert found
        assert all(found[step] == expected[step] for step in found)
        if stop:
            assert "as asked" in said[0][0]
            assert "the same command continues" in said[0][0]
        assert not any(out for out, _ in said[1:] if "loss" in out), "the lead alone tells of the run"
    assert_same_run(folder, reference[0])


def test_a_killed_process_ends_the_other_and_the_supervisors_continue_both(start, reference, tmp_path):
    folder = tmp_path / "run"
    kill = {"process": 1, "step": 4, "signal": signal.SIGKILL, "once": str(tmp_path / "killed")}
    statuses, said = start(folder, 2, flags=["--peer_timeout=25"], kill=kill, supervised=True)
    assert statuses == [0, 0], said[0][1][-3000:] + said[1][1][-3000:]
    # Once, or again where a slow machine is not back in time.
    lost = [line for line in said[0][1].splitlines() if "a peer of process 0 of 2 is lost or stuck" in line]
    assert lost
    assert all("Start the same command again on all hosts" in line for line in lost)
    assert "asked to be resumed (status 75): starting it again" in said[0][1]
    assert "crash 1 of 5 in a row (status 137)" in said[1][1]
    assert_same_run(folder, reference[0])


def test_a_mistake_that_one_process_finds_ends_it_at_once(monkeypatch, capsys):
    """Where all know of it, or there is one process, it is an ordinary error."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    for count, mistake in ((1, UserError("a.jpg")), (2, Agreed("b.jpg"))):
        monkeypatch.setattr(jax, "process_count", lambda count=count: count)
        with pytest.raises(UserError, match=str(mistake)), lost_peers("run"):
            raise mistake
    assert not ended
    with lost_peers("run"):
        raise UserError("Cannot read c.jpg")
    assert ended == [2]
    assert capsys.readouterr().err == "error: process 0: Cannot read c.jpg\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--process_id=0"], "belong together"),
        (["--coordinator=here", "--num_processes=2", "--process_id=0"], "not of the form HOST:PORT"),
        (["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"], "expected 0 to 1"),
        (["--num_processes=3"], "--num_processes is 3, but 1 found one another"),
        (["--profile_steps=5"], "--profile_steps=5 is not of the form first-last"),
    ],
)
def test_wrong_flags_are_one_sentence(start, tmp_path, flags, words):
    [status], [(_, error)] = start(tmp_path / "run", 1, flags=flags)
    assert status == 2
    assert words in error
    assert error.startswith("error: ")
    assert not (tmp_path / "run").exists()
