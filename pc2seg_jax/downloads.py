"""Public files, fetched once into a cache folder and accepted only with their SHA-256 where that is known."""

import os
from pathlib import Path

import pooch
import requests

from pc2seg_jax.errors import UserError


def cache_folder() -> Path:
    """Where downloads are kept: $PC2SEG_CACHE, or pc2seg_jax in the system's cache folder."""
    return Path(os.environ.get("PC2SEG_CACHE") or pooch.os_cache("pc2seg_jax"))


def fetch(address: str, path: Path, *, what: str, sha256: str | None = None) -> Path:
    """Downloads `address` to `path`, unless that file exists; returns `path`.

    Args:
      path: below `cache_folder()`.
      what: the file in words, for messages.
      sha256: of the published file, or None where it is not known. A file with another one is never used, whether it
        has just come or was there before; one that was there stays as it is.

    Raises:
      UserError: when the file cannot be downloaded or is not the published one, with what to fetch and where to put it.
    """
    by_hand = f"fetch {address} by hand and put it at {path}"
    try:
        if not path.exists():
            pooch.retrieve(
                address,
                known_hash=sha256 and f"sha256:{sha256}",
                fname=path.name,
                path=path.parent,
                downloader=pooch.HTTPDownloader(progressbar=True),
            )
        elif sha256 and (found := pooch.file_hash(str(path))) != sha256:
            raise UserError(
                f"{path} is not the published file of {what} (SHA-256 {found} instead of {sha256}): "
                "delete it to have it downloaded again"
            )
    except requests.RequestException as error:
        raise UserError(f"{what} cannot be downloaded ({error}): {by_hand}") from error
    except ValueError as error:  # pooch has deleted what it downloaded
        raise UserError(f"the download of {what} is damaged ({error}): {by_hand}") from error
    except OSError as error:
        raise UserError(f"{what} cannot be kept in {path.parent} ({error}): set PC2SEG_CACHE") from error
    return path
