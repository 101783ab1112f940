"""Writes a dataset once, into a local folder or a bucket."""

import contextlib
import io
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from etils import epath
from tqdm import tqdm

from pc2seg_jax.data.builders import FILE_FORMAT, make
from pc2seg_jax.data.builders.archives import one_line
from pc2seg_jax.data.quiet_tensorflow import tf
from pc2seg_jax.data.quiet_tfds import tfds
from pc2seg_jax.errors import UserError

_LAST = ("features.json", "dataset_info.json")  # TFDS takes a folder with these files for a dataset


class Prepared(NamedTuple):
    """folder: where the records are. counts: images of every split. new: whether they have been written just now."""

    folder: str
    counts: dict[str, int]
    new: bool


def prepare(name: str, *, data_dir: str | None = None, manual_dir: str | None = None) -> Prepared:
    """Writes a dataset, unless it is there. A failure leaves nothing of it behind; what was downloaded whole is kept.

    Args:
      name: one of `builders.NAMES`.
      data_dir: the folder of all prepared datasets, local or gs://...; None is that of TFDS.
      manual_dir: the folder of archives that were fetched by hand; None is downloads/manual in `data_dir`.

    Raises:
      UserError: naming what is missing, damaged, or cannot be written.
    """
    manual = Path(manual_dir).expanduser() if manual_dir else None
    if manual and not manual.is_dir():
        raise UserError(f"--manual_dir={manual_dir} is not a folder: name the one with the archives, or leave it out.")
    builder = make(name, data_dir)
    new = not builder.is_prepared()
    if new:
        try:
            _write(name, builder.data_dir_root, builder.data_path, manual)
        except (OSError, RuntimeError, tf.errors.OpError) as error:  # RuntimeError is what array_record raises
            where = f"{name} cannot be written to {builder.data_dir}"
            raise UserError(f"{where} ({one_line(error)}): make room, or name another --data_dir.") from error
        builder = make(name, data_dir)
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    return Prepared(builder.data_dir, counts, new)


def _write(name: str, root: epath.Path, folder: epath.Path, manual: Path | None) -> None:
    """Writes to a temporary folder first, also because array_record reads from buckets but writes local files only."""
    if folder.exists() and not _is_remote(root):
        raise UserError(f"{folder} exists without being a whole dataset: delete it, or name another --data_dir.")
    local = _local_root() if _is_remote(root) else root
    local.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="incomplete.", dir=local) as temporary:
        builder = make(name, temporary)
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS would name the temporary folder as the place to look
            builder.download_and_prepare(
                download_dir=local / "downloads",
                download_config=tfds.download.DownloadConfig(manual_dir=manual),
                file_format=FILE_FORMAT,
            )
        if _is_remote(root):
            copy(builder.data_path, folder)
        else:
            folder.parent.mkdir(parents=True, exist_ok=True)
            builder.data_path.rename(folder)


def _is_remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


def _local_root() -> epath.Path:
    """The folder of TFDS or, where that is remote, its default."""
    root = epath.Path(tfds.core.constants.DATA_DIR).expanduser()
    return epath.Path("~/tensorflow_datasets").expanduser() if _is_remote(root) else root


def copy(source: epath.Path, target: epath.Path) -> None:
    """Copies the files of a prepared dataset; those that make it one come last. A failure removes `target`."""
    files = [file for file in source.iterdir() if file.name not in _LAST] + [source / name for name in _LAST]
    target.mkdir(parents=True, exist_ok=True)
    try:
        for file in tqdm(files, desc=f"Copying to {target}", unit=" files", leave=False):
            file.copy(target / file.name, overwrite=True)
    except BaseException:
        target.rmtree(missing_ok=True)
        raise
