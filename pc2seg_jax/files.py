"""Paths on the local disk and in buckets (`gs://`), and files that are there as a whole or not at all."""

import io
import pathlib
import shutil
import tempfile
import zipfile
import zlib
from typing import TypeAlias

import numpy as np
from etils import epath

from pc2seg_jax.errors import UserError

AnyPath: TypeAlias = pathlib.Path | epath.Path


def path_of(text: str | AnyPath) -> AnyPath:
    """A pathlib path, or for gs://BUCKET/PATH one of etils, which has the same methods.

    Raises:
      UserError: for another kind of address, which would become a folder of that name.
    """
    if "://" in str(text) and not str(text).startswith("gs://"):
        raise UserError(f"{text} is not a path: expected one on a local disk, or gs://BUCKET/PATH")
    return epath.Path(text) if str(text).startswith("gs://") else pathlib.Path(text)


def local_path(name: str, text: str) -> pathlib.Path:
    """A path that must be on a disk.

    Args:
      name: of the flag or key, for the sentence.

    Raises:
      UserError: when it is a bucket's.
    """
    if "://" in text:
        raise UserError(
            f"{name}={text} must be on a local disk: copy it with gcloud storage cp, or mount the bucket with gcsfuse"
        )
    return pathlib.Path(text)


def is_local(path: AnyPath) -> bool:
    return isinstance(path, pathlib.Path)


def absolute(path: AnyPath) -> AnyPath:
    return path.absolute() if is_local(path) else path


def read_arrays(path: AnyPath, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file.

    Raises:
      UserError: when it is missing or damaged, with what to do then.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            return dict(stored)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from error


def replace_bytes(path: AnyPath, content: bytes) -> None:
    """Writes a file, or replaces it, so that a process that is killed meanwhile leaves the old one or the new one."""
    if not is_local(path):  # an object of a bucket is there when it has arrived as a whole
        path.write_bytes(content)
        return
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def replace_text(path: AnyPath, text: str) -> None:
    """`replace_bytes` of text in UTF-8."""
    replace_bytes(path, text.encode())


class GrowingText:
    """A text file that gets longer, of which a killed process leaves whole lines but for the last one.

    Objects of a bucket cannot be appended to: every `append` uploads the text again, about 0.1 s for a run's lines.
    """

    def __init__(self, path: AnyPath, text: str):
        """text: what the file holds already."""
        self._path, self._text = path, text
        self._file = path.open("a") if is_local(path) else None

    def append(self, text: str) -> None:
        if self._file is not None:
            self._file.write(text)
            self._file.flush()
        else:
            self._text += text
            self._path.write_text(self._text)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class WrittenHere:
    """For a library that writes to a local disk only: `target` itself, or a folder that `copy` copies to a bucket."""

    def __init__(self, target: AnyPath):
        self._target = target
        self.folder = target if is_local(target) else pathlib.Path(tempfile.mkdtemp(prefix=f"{target.name}_"))

    def copy(self) -> None:
        if is_local(self._target):
            return
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            goal = self._target / path.relative_to(self.folder).as_posix()
            goal.parent.mkdir(parents=True, exist_ok=True)
            goal.write_bytes(path.read_bytes())

    def close(self) -> None:
        """Copies, and removes the folder if it is not the target."""
        self.copy()
        if not is_local(self._target):
            shutil.rmtree(self.folder)
