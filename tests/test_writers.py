"""The files of a run's numbers: every step once, and the start that made it."""

import json

import jax
import pytest

from pc2seg_jax.writers import MetricWriter, RunLog


def take_steps(folder, start, last, steps=6):
    """A process that logs the steps behind `start` up to `last`, of a run of `steps`."""
    log = RunLog(folder, start_step=start, steps=steps, images_per_step=4)
    for step in range(start + 1, last + 1):
        log.step(step, {"loss": 1.0})
    log.close()


def timings(folder):
    return [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]


def test_a_start_tells_versions_and_hardware_in_timings_alone(tmp_path):
    take_steps(tmp_path, 0, 2)
    start, *rest = timings(tmp_path)
    assert start["step"] == 0
    assert start["versions"]["jax"] == jax.__version__
    assert start["hardware"].startswith(f"{jax.device_count()} x cpu, ")
    assert start["started"].endswith(" UTC")
    assert [line["step"] for line in rest] == [1, 2]
    assert "started" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_start_stays_as_long_as_a_step_that_it_made(tmp_path):
    take_steps(tmp_path, 0, 1)
    take_steps(tmp_path, 0, 4)  # the first died before its first checkpoint: nothing of it is left
    take_steps(tmp_path, 2, 5)
    take_steps(tmp_path, 4, 6)
    take_steps(tmp_path, 6, 6)  # finished: nothing to make
    lines = timings(tmp_path)
    assert [line["step"] for line in lines if "started" in line] == [0, 2, 4]
    assert [line["step"] for line in lines if "seconds" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines] == [0, 1, 2, 2, 3, 4, 4, 5, 6]


@pytest.mark.parametrize(
    "lines", [['{"step": 1, "seconds": 5.0}'], ['{"step": 0, "started": "x"}', '{"step": 1, "sec']]
)
def test_files_of_runs_that_did_not_tell_their_start_or_were_cut_off_are_continued(tmp_path, lines):
    (tmp_path / "timings.jsonl").write_text("\n".join(lines))
    writer = MetricWriter(tmp_path, 1)
    writer.close()
    assert writer.seconds == (5.0 if len(lines) == 1 else 0.0)
    assert timings(tmp_path) == [json.loads(lines[0])]
