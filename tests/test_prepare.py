"""Preparing once, into a folder or a bucket, and reading what was prepared."""

import concurrent.futures
import functools
import hashlib
import http.server
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import archive_files as files
import numpy as np
import pytest
from etils import epath

from pc2seg_jax.data import builders
from pc2seg_jax.data.builders import preparation
from pc2seg_jax.data.builders.archives import Archive
from pc2seg_jax.data.builders.preparation import prepare
from pc2seg_jax.data.prepared import open_split
from pc2seg_jax.data.quiet_tfds import tfds
from pc2seg_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    files.expect_small(monkeypatch)


@pytest.fixture
def manual(tmp_path):
    """A folder with the archives of all datasets."""
    (tmp_path / "manual").mkdir()
    for make in files.MAKE.values():
        files.write(tmp_path / "manual", make()[0])
    return str(tmp_path / "manual")


@pytest.fixture
def data_dir(tmp_path, manual):
    """A folder in which VOC is prepared."""
    prepare("voc2012_seg", data_dir=str(tmp_path / "data"), manual_dir=manual)
    return str(tmp_path / "data")


def assert_voc_is_in(data_dir):
    _, truth = files.voc()
    for split, examples in truth.items():
        records = open_split("voc2012_seg", split, data_dir)
        images = [records.read(index)[0] for index in range(len(records.ids))]
        assert images == [examples[id_][0] for id_ in sorted(examples)]


def test_a_dataset_is_prepared_once(tmp_path, manual):
    first = prepare("voc2012_seg", data_dir=str(tmp_path / "data"), manual_dir=manual)
    folder = tmp_path / "data" / "voc2012_seg" / "1.0.0"
    assert first == (str(folder), {"train": 2, "aug": 2, "val": 2}, True)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (tmp_path / "manual" / files.VOC).unlink()
    assert prepare("voc2012_seg", data_dir=str(tmp_path / "data"), manual_dir=manual) == first._replace(new=False)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert_voc_is_in(str(tmp_path / "data"))


def test_the_default_folder_is_that_of_tfds(tmp_path, manual, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "default"))
    assert prepare("voc2012_seg", manual_dir=manual).folder == str(tmp_path / "default" / "voc2012_seg" / "1.0.0")
    assert_voc_is_in(None)


def test_every_rule_of_coco_is_a_dataset_of_its_own(tmp_path, manual):
    folders = [
        prepare(name, data_dir=str(tmp_path / "data"), manual_dir=manual)
        for name in ("coco_seg", "coco_seg/overlap_ignored", "coco_seg/small_on_top")
    ]
    assert [prepared.new for prepared in folders] == [True, True, False]
    assert sorted(path.name for path in (tmp_path / "data" / "coco_seg").iterdir()) == [
        "overlap_ignored",
        "small_on_top",
    ]


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that counts as remote, and beside it the folder of TFDS."""
    monkeypatch.setattr(preparation, "_is_remote", lambda path: str(path).startswith(str(tmp_path / "bucket")))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "local"))
    return tmp_path / "bucket"


def test_a_bucket_gets_a_copy_whose_last_files_make_it_a_dataset(bucket, tmp_path, manual, monkeypatch):
    def spy(file, target, **options):
        copied.append(file.name)
        return original(file, target, **options)

    copied, gpath = [], type(epath.Path("/"))
    original = gpath.copy
    monkeypatch.setattr(gpath, "copy", spy)
    assert prepare("voc2012_seg", data_dir=str(bucket), manual_dir=manual).new
    assert copied[-2:] == ["features.json", "dataset_info.json"]
    assert sorted(copied) == sorted(path.name for path in (bucket / "voc2012_seg" / "1.0.0").iterdir())
    assert_voc_is_in(str(bucket))
    assert [path.name for path in (tmp_path / "local").iterdir()] == ["downloads"]
    assert not prepare("voc2012_seg", data_dir=str(bucket), manual_dir=manual).new


def test_a_copy_that_fails_is_removed_and_can_be_repeated(bucket, tmp_path, manual):
    obstacle = bucket / "voc2012_seg" / "1.0.0" / "metadata.json" / "file"
    obstacle.parent.mkdir(parents=True)
    with pytest.raises(UserError, match=r"\Avoc2012_seg cannot be written to [^\n]*\Z"):
        prepare("voc2012_seg", data_dir=str(bucket), manual_dir=manual)
    assert not (bucket / "voc2012_seg" / "1.0.0").exists()
    assert [path.name for path in (tmp_path / "local").iterdir()] == ["downloads"]
    assert prepare("voc2012_seg", data_dir=str(bucket), manual_dir=manual).new
    assert_voc_is_in(str(bucket))


def test_what_is_in_the_way_is_named_and_kept(tmp_path, manual):
    folder = tmp_path / "data" / "voc2012_seg" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=rf"\A{re.escape(str(folder))} exists without being a whole dataset[^\n]*\Z"):
        prepare("voc2012_seg", data_dir=str(tmp_path / "data"), manual_dir=manual)
    assert (folder / "thesis.txt").read_text() == "precious"
    with pytest.raises(UserError, match=r"\Avoc2012_seg cannot be written to [^\n]*thesis.txt[^\n]*\Z"):
        prepare("voc2012_seg", data_dir=str(folder / "thesis.txt"), manual_dir=manual)


def test_another_format_has_no_random_access(tmp_path, manual):
    builder = tfds.builder("voc2012_seg", data_dir=tmp_path / "data")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual))
    for use in (prepare, lambda name, data_dir: open_split(name, "train", data_dir)):
        with pytest.raises(UserError, match="holds voc2012_seg as tfrecord, which has no random access"):
            use("voc2012_seg", data_dir=str(tmp_path / "data"))


def test_wrong_names_and_folders_are_named(tmp_path, manual, data_dir):
    with pytest.raises(UserError, match=r"There is no dataset 'voc': use one of voc2012_seg, .*coco_seg/small_on_top"):
        prepare("voc", data_dir=data_dir)
    with pytest.raises(UserError, match="--manual_dir=nowhere is not a folder"):
        prepare("voc2012_seg", data_dir=data_dir, manual_dir="nowhere")
    with pytest.raises(UserError, match=r"in x://bucket \('x://'\): name another folder"):
        prepare("voc2012_seg", data_dir="x://bucket")
    with pytest.raises(UserError, match="no split 'test': use one of train, aug, val"):
        open_split("voc2012_seg", "test", data_dir)
    command = f"run python -m pc2seg_jax.prepare --dataset=coco_seg --data_dir={data_dir}"
    with pytest.raises(UserError, match=f"coco_seg is not prepared in .*small_on_top/1.0.0: {command}"):
        open_split("coco_seg", "train", data_dir)


@pytest.mark.parametrize("file", ["*-train.array_record*", "metadata.json"])
@pytest.mark.parametrize("damage", [pathlib.Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:70])])
def test_a_damaged_dataset_is_named(file, damage, data_dir):
    damage(next(pathlib.Path(data_dir).rglob(file)))
    with pytest.raises(
        UserError, match=f"{data_dir}/voc2012_seg/1.0.0 is damaged: delete that folder and run python -m"
    ):
        open_split("voc2012_seg", "train", data_dir).read(0)


def test_many_threads_may_read_at_once(data_dir):
    records = open_split("voc2012_seg", "train", data_dir)
    expected = [records.read(index) for index in range(2)]
    order = np.random.default_rng(0).integers(0, 2, 500).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(records.read, order)) == [expected[index] for index in order]


def test_archives_behind_a_login_are_asked_for(tmp_path):
    def assert_asked(**folders):
        with pytest.raises(UserError, match=r"\A[^\n]*log in at https://www\.cityscapes-dataset\.com[^\n]*\Z") as error:
            prepare("cityscapes_seg", data_dir=str(tmp_path / "data"), **folders)
        return str(error.value)

    assert str(tmp_path / "data" / "downloads" / "manual") in assert_asked()
    manual = tmp_path / "some"
    manual.mkdir()
    assert f"{manual} does not exist or is empty" in assert_asked(manual_dir=str(manual))
    files.write(manual, {files.CITY_IMAGES: {}})
    assert f"{manual / files.CITY_LABELS} does not exist" in assert_asked(manual_dir=str(manual))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Publishes tmp_path/public as the home of VOC and SBD, with their right hashes; the list of what was fetched."""
    (tmp_path / "public").mkdir()
    files.write(tmp_path / "public", files.voc()[0])

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            served.append(self.path.lstrip("/"))

    served = []
    handler = functools.partial(Quiet, directory=str(tmp_path / "public"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        voc, sbd = ((tmp_path / "public" / file).read_bytes() for file in (files.VOC, files.SBD))
        archives = (
            Archive(files.VOC, f"{address}/{files.VOC}", len(voc), sha256=hashlib.sha256(voc).hexdigest()),
            Archive(files.SBD, f"{address}/{files.SBD}", md5=hashlib.md5(sbd).hexdigest()),
        )
        monkeypatch.setattr(builders.BUILDERS["voc2012_seg"], "ARCHIVES", archives)
        yield served
        server.shutdown()


def test_archives_are_downloaded_once(tmp_path, server):
    for run in range(2):
        prepare("voc2012_seg", data_dir=str(tmp_path / "data"))
        (tmp_path / "data" / "voc2012_seg").rename(tmp_path / f"run{run}")
    assert sorted(server) == sorted([files.VOC, files.SBD])


def test_an_archive_that_is_there_is_not_downloaded(tmp_path, server):
    (tmp_path / "some").mkdir()
    shutil.copy(tmp_path / "public" / files.SBD, tmp_path / "some")
    prepare("voc2012_seg", data_dir=str(tmp_path / "data"), manual_dir=str(tmp_path / "some"))
    assert server == [files.VOC]


@pytest.mark.parametrize("archive", [files.VOC, files.SBD])
@pytest.mark.parametrize("wrong", ["damaged", "gone"])
def test_a_download_that_fails_says_what_to_do_and_can_be_repeated(archive, wrong, tmp_path, server):
    public = tmp_path / "public" / archive
    content = public.read_bytes()
    if wrong == "gone":
        public.unlink()
    else:
        public.write_bytes(content[:-1] + b"?")
    with pytest.raises(UserError) as error:
        prepare("voc2012_seg", data_dir=str(tmp_path / "data"))
    assert archive in str(error.value)
    assert "fetch" in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["downloads"]
    left = [path for path in (tmp_path / "data" / "downloads").rglob("*") if path.is_file() and path.suffix != ".INFO"]
    assert len(left) == (archive == files.SBD)  # the whole archive of VOC, which was fetched before
    public.write_bytes(content)
    assert prepare("voc2012_seg", data_dir=str(tmp_path / "data")).new


RUN = """
import runpy, sys
import archive_files, pytest
archive_files.expect_small(pytest.MonkeyPatch())
sys.argv[0] = "prepare.py"
runpy.run_module("pc2seg_jax.prepare", run_name="__main__", alter_sys=True)
"""


def test_the_command_says_where_the_dataset_is_or_what_is_wrong(tmp_path, manual):
    def run(*arguments):
        command = [sys.executable, "-c", RUN, f"--data_dir={tmp_path}/data", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        return done.returncode, done.stdout, done.stderr.splitlines()[-1:]

    status, out, _ = run("--dataset=voc2012_seg", f"--manual_dir={manual}")
    assert status == 0
    assert out == f"voc2012_seg prepared in {tmp_path}/data/voc2012_seg/1.0.0: train 2, aug 2, val 2 images\n"
    (tmp_path / "manual" / files.CITY_LABELS).write_bytes(b"")
    status, out, (line,) = run("--dataset=cityscapes_seg", f"--manual_dir={manual}")
    assert (status, out) == (2, "")
    assert line.startswith(f"error: Cannot read {manual}/{files.CITY_LABELS} (")
