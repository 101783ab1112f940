"""A run whose folder is in a bucket (gs://): the same run, continued, evaluated, damaged."""

import json

import bucket
import jax
import numpy as np
import pytest

from pc2seg_jax import restoring, training
from pc2seg_jax.checkpoints import Checkpoints
from pc2seg_jax.files import path_of
from pc2seg_jax.parallel import make_shardings

FOLDER = "gs://bucket/runs/tiny"


@pytest.fixture(scope="module")
def _bucket():
    with pytest.MonkeyPatch.context() as patch, bucket.served(patch):
        yield


@pytest.fixture(scope="module")
def run(_bucket, tiny_config, train):
    """The tiny run in a bucket, stopped after its third step and continued."""
    batches = training.training_batches

    def until_the_fifth(config, dataset, start_step):
        for i, batch in enumerate(batches(config, dataset, start_step)):
            if start_step + i == 4:
                raise KeyboardInterrupt
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "training_batches", until_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(), FOLDER)
    train(tiny_config(), FOLDER)
    return path_of(FOLDER)


def test_it_is_the_run_of_a_local_folder(run, tiny_run, tiny_config, make_parts):
    assert (run / "metrics.jsonl").read_text() == (tiny_run.workdir / "metrics.jsonl").read_text()
    timings = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
    assert [line["step"] for line in timings if "seconds" in line] == list(range(1, 7))
    assert [line["step"] for line in timings if "started" in line] == [0, 2]
    here, there = sorted(x.name for x in run.iterdir()), sorted(x.name for x in tiny_run.workdir.iterdir())
    assert here == there
    assert len(list((run / "tensorboard").iterdir())) == 2  # one file per start
    like = make_parts(tiny_config()).init(0)
    states = []
    for folder in (run, tiny_run.workdir):
        with Checkpoints(folder) as checkpoints:
            states.append(jax.device_get(checkpoints.restore_newest(like)))
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_it_is_restored_for_evaluation(run, tiny_run):
    assert json.loads((run / "evaluation" / "6_val.json").read_text())["miou"] == tiny_run.result["miou"]
    restored = restoring.restore(run, "latest", make_shardings(1))
    assert restored.step == 6
    assert restored.info == restoring.restore(tiny_run.workdir, "latest", make_shardings(1)).info


def test_a_half_written_step_is_none_and_a_damaged_one_is_put_aside(run, tiny_config, make_parts):
    """Last, as it changes the run."""
    like = make_parts(tiny_config()).init(0)
    steps = run / "checkpoints"
    (steps / "8").mkdir()
    (steps / "8" / "part").write_text("half")
    with Checkpoints(run) as checkpoints:
        assert checkpoints.find("latest") == 6
    with Checkpoints(run, create=True) as checkpoints:
        restored = checkpoints.restore_newest(like)
        checkpoints.save(restored._replace(step=np.int32(8)), None)  # in the place of the half one
        checkpoints.save(restored._replace(step=np.int32(10)), None)
    for path in (steps / "10" / "model" / "d").iterdir():
        path.unlink()
    said = []
    with Checkpoints(run, create=True) as checkpoints:
        assert int(checkpoints.restore_newest(like, said.append).step) == 8
    assert "step 10 cannot be read" in said[0]
    assert (steps / "damaged_10" / "commit_success.txt").exists()
    assert not (steps / "10").exists()


@pytest.mark.parametrize("flag", ["--images", "--output"])
def test_what_must_be_local_says_so(flag, tmp_path):
    from pc2seg_jax.errors import UserError
    from pc2seg_jax.files import local_path

    with pytest.raises(UserError, match=f"{flag}=gs://bucket/x must be on a local disk: copy it"):
        local_path(flag, "gs://bucket/x")
