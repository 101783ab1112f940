"""What is damaged on disk is noticed, named and kept; the newest good checkpoint is used where there is one."""

import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from pc2seg_jax import processes
from pc2seg_jax.checkpoints import Checkpoints
from pc2seg_jax.errors import UserError


@pytest.fixture(scope="module")
def state(tiny_config, make_parts):
    return make_parts(tiny_config()).init(0)


@pytest.fixture(scope="module")
def good(state, tmp_path_factory):
    """A folder with the checkpoints 2, evaluated, and 4, not evaluated; all arrays of 4 are one larger."""
    folder = tmp_path_factory.mktemp("good")
    with Checkpoints(folder, create=True) as checkpoints:
        checkpoints.save(state._replace(step=np.int32(2)), 30.0)
        checkpoints.save(larger(state)._replace(step=np.int32(4)), None)
    return folder


def larger(state):
    return jax.tree.map(lambda x: x + 1, state)


@pytest.fixture
def run(good, tmp_path):
    """A copy to be damaged."""
    return pathlib.Path(shutil.copytree(good, tmp_path / "run"))


def files(folder):
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def cut(step):
    path = files(step / "model")[-1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(step):
    path = files(step / "model")[-1]
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4] = bytes(x ^ 255 for x in data[middle : middle + 4])
    path.write_bytes(data)


def remove_data(step):
    files(step / "train")[-1].unlink()


def remove_manifests(step):
    for path in step.rglob("manifest.ocdbt"):
        path.unlink()


def cut_sums(step):
    files(step / "check")[-1].write_text("{")


DAMAGES = {
    cut: "cannot be read",
    flip: "has changed since it was written|cannot be read",
    remove_data: "cannot be read",
    remove_manifests: "cannot be read",
    cut_sums: "cannot be read",
}


def contents(folder):
    return {path.name: path.read_bytes() for path in files(folder)}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_named_and_kept_and_the_one_before_used(run, state, damage, capfd):
    step = run / "checkpoints" / "4"
    damage(step)
    left, said = contents(step), []
    with Checkpoints(run, create=True) as checkpoints:
        restored = checkpoints.restore_newest(state, said.append)
        assert int(restored.step) == 2
        jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)
        checkpoints.save(restored._replace(step=np.int32(4)), 10.0)  # its number is free again
    assert len(said) == 1
    assert said[0].startswith("warning: step 4 ")
    assert any(words in said[0] for words in DAMAGES[damage].split("|"))
    assert said[0].endswith("put aside as damaged_<step>; continuing from step 2")
    assert contents(run / "checkpoints" / "damaged_4") == left
    assert "Traceback" not in capfd.readouterr().err
    with Checkpoints(run) as checkpoints:
        assert int(checkpoints.restore_newest(state).step) == 4


def test_reading_alone_changes_nothing(run, state):
    cut(run / "checkpoints" / "4")
    before, said = contents(run), []
    with Checkpoints(run) as checkpoints:
        assert int(checkpoints.restore_newest(state, said.append).step) == 2
        with pytest.raises(UserError, match=r"the checkpoint of step 4 .* cannot be read .*: choose another .*\[2\]"):
            checkpoints.restore_model(4, {name: getattr(state, name) for name in ("params", "batch_stats", "teacher")})
    assert "put aside" not in said[0]
    assert contents(run) == before


def test_an_empty_newest_step_is_not_the_newest(run, state):
    (run / "checkpoints" / "6").mkdir()
    said = []
    with Checkpoints(run, create=True) as checkpoints:
        assert int(checkpoints.restore_newest(state, said.append).step) == 4
    assert "step 6 is an empty folder" in said[0]
    assert (run / "checkpoints" / "damaged_6").is_dir()


def test_a_half_written_temporary_goes_when_a_newer_checkpoint_is_complete(run, state):
    half = run / "checkpoints" / "6.orbax-checkpoint-tmp"
    shutil.copytree(run / "checkpoints" / "4", half)
    with Checkpoints(run, create=True) as checkpoints:
        restored = checkpoints.restore_newest(state)
        assert int(restored.step) == 4
        assert half.is_dir()
        checkpoints.save(restored._replace(step=np.int32(6)), None)
    assert not half.is_dir()
    with Checkpoints(run) as checkpoints:
        assert int(checkpoints.restore_newest(state).step) == 6


def test_without_a_good_one_nothing_starts_from_scratch(run, state):
    for step in ("2", "4"):
        cut(run / "checkpoints" / step)
    before = contents(run)
    with Checkpoints(run, create=True) as checkpoints:
        with pytest.raises(UserError, match=r"no checkpoint to continue from: step 4 .*; step 2 .*Nothing was deleted"):
            checkpoints.restore_newest(state)
    assert contents(run) == before


def test_a_checkpoint_of_another_network_is_refused_by_name(run, tiny_config, make_parts):
    other = make_parts(tiny_config(teacher_momentum=0.0)).init(0)
    with Checkpoints(run, create=True) as checkpoints:
        with pytest.raises(UserError, match=r"step 4 is of another network: it has \['teacher'\]"):
            checkpoints.restore_newest(other)
    wider = make_parts(tiny_config(model__head_width=16)).init(0)
    with Checkpoints(run, create=True) as checkpoints:
        with pytest.raises(UserError, match=r"step 4 .*shape"):
            checkpoints.restore_newest(wider)


SAVE = """
import pathlib, sys
import numpy as np
from pc2seg_jax.checkpoints import Checkpoints
from pc2seg_jax.errors import UserError
from pc2seg_jax.types import TrainState

large = {"w": np.random.default_rng(0).normal(size=(300, 1000))}
try:
    with Checkpoints(pathlib.Path(sys.argv[1]), create=True) as checkpoints:
        checkpoints.save(TrainState(**dict.fromkeys(TrainState._fields, large) | {"step": np.int32(1)}), None)
except UserError as error:
    print(error)
"""


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB; skips where this process may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def save_to(folder):
    """What a process says that saves there. A process of its own, whose storage threads end with it."""
    result = subprocess.run([sys.executable, "-c", SAVE, folder], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    return result.stdout


@pytest.mark.parametrize("coming", [processes.Resume, UserError, KeyError])
def test_a_last_write_that_fails_is_told_beside_the_error_on_its_way(state, tmp_path, monkeypatch, capfd, coming):
    expected = UserError if coming is processes.Resume else coming
    words = "a checkpoint cannot be written" if coming is processes.Resume else "first"

    def end():
        with Checkpoints(tmp_path, create=True) as checkpoints:
            checkpoints.save(state, None)
            close = checkpoints._writer.close
            monkeypatch.setattr(checkpoints._writer, "close", lambda: (close(), 1 / 0))
            raise coming("first")

    with pytest.raises(expected, match=words):
        end()
    assert ("a checkpoint cannot be written" in capfd.readouterr().err) == (coming is not processes.Resume)


def test_a_full_disk_is_one_sentence(small_disk):
    assert re.search(r"^a checkpoint cannot be written to .*No space left.*make room.*$", save_to(small_disk))


def test_a_read_only_folder_is_one_sentence(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert re.search(r"^a checkpoint cannot be written to .*Read-only.*make it writable.*$", save_to(small_disk))
