"""A step that is not finite stops the run, is kept, and can be looked at again."""

import json
import types

import jax
import numpy as np
import pytest

from pc2seg_jax import failures, training
from pc2seg_jax.checkpoints import load_state
from pc2seg_jax.errors import UserError
from pc2seg_jax.parallel import shard_batch
from pc2seg_jax.workdir import load

BATCHES = training.training_batches
BAD = 3


def spoil(crops):
    return crops._replace(unlabeled=crops.unlabeled._replace(contrast_mean=crops.unlabeled.contrast_mean * np.nan))


def spoiled_batches(config, dataset, start):
    for number, crops in enumerate(BATCHES(config, dataset, start), start=start + 1):
        yield spoil(crops) if number == BAD else crops


@pytest.fixture(scope="module")
def exploding(tiny_config, train, tmp_path_factory):
    """The folder of a run whose third batch has a colour that is not a number, and the sentence it stopped with."""
    workdir = tmp_path_factory.mktemp("runs") / "exploding"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "training_batches", spoiled_batches)
        with pytest.raises(UserError) as error:
            train(tiny_config(eval__every=100), workdir)
    return workdir, str(error.value)


def test_the_run_stops_with_one_sentence(exploding):
    workdir, message = exploding
    step = failures.find_failure(workdir).name
    assert step == str(BAD)
    assert message.startswith(f"step {step} is not finite (")
    assert "(gradient_norm is nan, loss is nan, loss/consistency is nan, loss/contrast is nan)" in message
    assert f"{workdir / 'failure' / step}" in message
    assert "--replay" in message
    assert "\n" not in message
    metrics = json.loads((workdir / "failure" / step / "metrics.json").read_text())
    assert metrics["finite"] == "0.0"


def test_state_and_batch_are_those_before_the_step(exploding, make_parts):
    workdir, _ = exploding
    folder = failures.find_failure(workdir)
    config, _ = load(workdir)
    parts = make_parts(config)
    batches = spoiled_batches(config, training.build.build_dataset(config), 0)
    state = parts.init(config.seed)
    for _ in range(BAD - 1):
        state, metrics = parts.train_step(state, shard_batch(next(batches), parts.shardings.data))
        assert metrics["finite"] == 1
    shapes = jax.eval_shape(parts.init, 0)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parts.shardings.replicated), shapes)
    kept = load_state(folder / "state", like)
    assert int(kept.step) == -BAD
    jax.tree.map(np.testing.assert_array_equal, kept._replace(step=state.step), state)
    jax.tree.map(np.testing.assert_array_equal, failures._load_crops(folder, config), next(batches))


def test_the_batch_is_put_together_from_the_rows_of_all_processes(exploding, tmp_path):
    whole = failures.find_failure(exploding[0]) / "batch_0.npz"
    config, _ = load(exploding[0])
    with np.load(whole) as stored:
        arrays = dict(stored)
    for host, rows in enumerate((slice(None, 1), slice(1, None))):
        np.savez(tmp_path / f"batch_{host}.npz", **{name: x[rows] for name, x in arrays.items()})
    expected = failures._load_crops(whole.parent, config)
    jax.tree.map(np.testing.assert_array_equal, failures._load_crops(tmp_path, config), expected)
    (tmp_path / "batch_1.npz").unlink()
    with pytest.raises(UserError, match=r"holds 1 of 8 labelled images, in 1 files batch_0\.npz .* other hosts"):
        failures._load_crops(tmp_path, config)
    (tmp_path / "batch_0.npz").write_bytes(b"half")
    with pytest.raises(UserError, match=r"batch_0\.npz is damaged"):
        failures._load_crops(tmp_path, config)


def test_a_checkpoint_at_the_very_step_is_not_written(tiny_config, train, tmp_path):
    """Between logged steps metrics are looked at one step later: too late for a step that is to be saved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "training_batches", spoiled_batches)
        with pytest.raises(UserError, match=f"^step {BAD} is not finite"):
            train(tiny_config(eval__every=100, log_every=50, checkpoint_every=BAD), tmp_path / "run")
    assert failures.find_failure(tmp_path / "run").name == str(BAD)
    assert not list((tmp_path / "run" / "checkpoints").glob("-*"))


def test_a_step_after_it_changes_nothing(tiny_config, make_parts, make_crops):
    parts = make_parts(tiny_config())
    crops = make_crops(tiny_config())
    before = jax.device_get(parts.init(0))
    state = parts.init(0)
    for batch in (spoil(crops), crops):
        state, metrics = parts.train_step(state, shard_batch(batch, parts.shardings.data))
        assert metrics["finite"] == 0
        assert int(state.step) == -1
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state)._replace(step=before.step), before)


def test_replay_shows_every_loss_and_gradient(exploding, make_parts, monkeypatch):
    workdir, _ = exploding
    config, _ = load(workdir)
    parts = make_parts(config)
    norms = {"gradient_norm/supervised": np.float32(0.5), "gradient_norm/contrast": np.float32(np.nan)}
    parts = types.SimpleNamespace(**vars(parts) | {"norms": lambda number: lambda state, crops: norms})
    monkeypatch.setattr(failures.build, "build_functions", lambda *args, **kwargs: parts)
    text = failures.replay(workdir, parts.shardings)
    said = dict(line.split()[:2] for line in text.splitlines()[1:-1])
    assert said["gradient_norm/supervised"] == "0.5"
    for name in ("loss", "loss/consistency", "loss/contrast", "gradient_norm", "gradient_norm/contrast"):
        assert said[name] == "nan"
    stored = json.loads((failures.find_failure(workdir) / "metrics.json").read_text())
    assert said["loss/supervised"] == stored["loss/supervised"]
    assert text.splitlines()[0] == f"step {BAD} of {workdir}, float32"
    assert text.splitlines()[-1] == "  parameters and statistics that are not finite: none"


def test_a_run_that_did_not_stop_has_nothing_to_replay(tiny_run):
    with pytest.raises(UserError, match="has nothing to replay: no step of this run was stopped"):
        failures.replay(tiny_run.workdir)
