"""The archives in which the datasets are published: found, checked, and read without unpacking them to disk."""

import contextlib
import hashlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath
from tqdm import tqdm

from pc2seg_jax.data.quiet_tfds import tfds
from pc2seg_jax.data.sources import DECODE_ERRORS
from pc2seg_jax.errors import UserError

DAMAGED = (*DECODE_ERRORS, tarfile.TarError, zipfile.BadZipFile, zlib.error)


class Archive(NamedTuple):
    """A published file.

    address: where it can be downloaded, or None where that needs a login. size: in bytes. sha256, md5: of the file, or
    None where they are not known.
    """

    filename: str
    address: str | None = None
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None


class File(NamedTuple):
    """A member of an archive. name: with the path of the archive, for messages."""

    name: str
    content: bytes


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def reading(name: str | epath.Path, *others: type[Exception]) -> Iterator[None]:
    """Turns what damaged files raise, and the `others`, into a UserError that names the file."""
    try:
        yield
    except (*DAMAGED, *others) as error:
        raise UserError(f"Cannot read {name} ({one_line(error)}): fetch the archive again if it is damaged.") from error


class Members:
    """Random access to the files in a .tar or .zip archive.

    Raises:
      UserError: for an archive that is none, and while reading a member that is missing or damaged.
    """

    def __init__(self, path: epath.Path):
        self.path = path
        with reading(path):
            if path.suffix == ".zip":
                archive = zipfile.ZipFile(path)
                self._infos = {info.filename: info for info in archive.infolist()}
                self._open = archive.open
            else:
                archive = tarfile.open(path, "r:")  # noqa: SIM115
                self._infos = {info.name: info for info in archive if info.isfile()}
                self._open = archive.extractfile

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def read(self, member: str) -> File:
        if member not in self._infos:
            raise UserError(
                f"{self.path} has no member {member}: it is another archive or incomplete, so fetch it again."
            )
        name = f"{member} in {self.path}"
        with reading(name), self._open(self._infos[member]) as file:
            return File(name, file.read())


def locate(
    archive: Archive, builder: tfds.core.DatasetBuilder, dl_manager: tfds.download.DownloadManager
) -> epath.Path:
    """The path of an archive: in the folder of manual downloads or, where it is not there, downloaded by TFDS.

    Raises:
      UserError: when it can be had in neither way, or is not the published file.
    """
    try:
        path = dl_manager.manual_dir / archive.filename
    except AssertionError as error:  # there is no such folder, or it is empty
        missing = one_line(error)
    else:
        if path.exists():
            _check(path, archive)
            return path
        missing = f"{path} does not exist: {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
    if archive.address is None:
        raise UserError(missing)
    return _download(archive, dl_manager, dl_manager.download_dir / builder.name)


def _download(archive: Archive, dl_manager: tfds.download.DownloadManager, folder: epath.Path) -> epath.Path:
    """Downloads into `folder`, where TFDS keeps the dataset's archives; TFDS checks the SHA-256 where we know it."""
    before = set(folder.glob("*.tmp.*"))
    try:
        path = dl_manager.download(archive.address)
    except (OSError, tfds.download.DownloadError, tfds.download.download_manager.NonMatchingChecksumError) as error:
        for unfinished in set(folder.glob("*.tmp.*")) - before:  # TFDS leaves it behind
            unfinished.rmtree()
        by_hand = f"fetch {archive.address} by hand, and name its folder as --manual_dir"
        raise UserError(f"{archive.filename} cannot be downloaded ({one_line(error)}): {by_hand}.") from error
    if archive.md5:
        try:
            _check(path, archive)
        except UserError:
            for file in (path, tfds.download.resource.get_info_path(path)):  # TFDS would take it for the right one
                file.unlink()
            raise
    return path


def _check(path: epath.Path, archive: Archive) -> None:
    """Compares size and hash with those of the published file."""
    wrong = f"{path} is not the published {archive.filename}, or is damaged"
    size = os.path.getsize(path)
    if size != (archive.size or size):
        raise UserError(f"{wrong}: it has {size:,} bytes instead of {archive.size:,}, so fetch it again.")
    for algorithm in ("sha256", "md5"):
        published = getattr(archive, algorithm)
        if published and (found := _digest(path, algorithm)) != published:
            raise UserError(f"{wrong}: its {algorithm} is {found} instead of {published}, so fetch it again.")


def _digest(path: epath.Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    with (
        open(path, "rb") as file,
        tqdm(total=os.path.getsize(path), desc=f"Checking {path.name}", unit="B", unit_scale=True, leave=False) as bar,
    ):
        while block := file.read(1 << 20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
