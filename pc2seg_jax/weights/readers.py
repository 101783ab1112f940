"""Files of weights in the formats they are published in, read into names and arrays."""

import pathlib
import pickle
import tarfile
import tempfile
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from pc2seg_jax.errors import UserError
from pc2seg_jax.weights.torch_file import read_torch

FORMATS = (
    "a TensorFlow checkpoint (its folder, its prefix such as .../model.ckpt, or the .tar.gz of the DeepLab model zoo), "
    "a PyTorch .pth, a .safetensors, or a .npz written by pc2seg_jax.convert or pc2seg_jax.pretrain"
)


class Tensors(NamedTuple):
    """The content of a file. format: "tensorflow", "torch" or "npz" (names are paths of ours). values: by name."""

    format: str
    values: dict[str, np.ndarray]


def read(path: pathlib.Path) -> Tensors:
    """Reads a file of weights; the format is told by the content.

    Raises:
      UserError: when there is no such file, or it is damaged or in no format of `FORMATS`.
    """
    try:
        return _read(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError) as error:
        reason = error
    except (
        safetensors.SafetensorError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
    ) as error:
        reason = error
    raise UserError(f"{path} cannot be read as weights ({reason}): expected {FORMATS}") from reason


def _read(path: pathlib.Path) -> Tensors:
    if path.is_dir() or _index_of(path).is_file():
        return Tensors("tensorflow", read_tensorflow(path))
    if not path.is_file():
        raise FileNotFoundError("no such file")
    if path.suffix == ".safetensors":
        return Tensors("torch", safetensors.numpy.load_file(path))
    if tarfile.is_tarfile(path):
        with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
            return Tensors("tensorflow", read_tensorflow(pathlib.Path(folder)))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            arrays = all(name.endswith(".npy") for name in archive.namelist())
        if arrays:
            with np.load(path) as archive:
                return Tensors("npz", dict(archive))
    elif path.open("rb").read(2) == b"PK":
        raise ValueError("its end is missing: copied or downloaded in part?")
    return Tensors("torch", read_torch(path))


def _index_of(path: pathlib.Path) -> pathlib.Path:
    """The .index file of a checkpoint that is named by its prefix or by one of its files."""
    if path.suffix == ".index":
        return path
    return path.with_name(path.name.split(".data-")[0] + ".index")


def read_tensorflow(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The variables of a TensorFlow checkpoint by name.

    path: of the checkpoint's prefix, of one of its files, or of a folder with one checkpoint, at any depth, in it.

    Raises:
      ValueError: no checkpoint, several, or a damaged one.
    """
    from pc2seg_jax.data.quiet_tensorflow import tf

    # Archives packed on a Mac hold a file ._NAME beside every NAME.
    inside = (index for index in sorted(path.rglob("*.index")) if not index.name.startswith("._"))
    found = list(inside) if path.is_dir() else [_index_of(path)]
    if len(found) != 1:
        names = ", ".join(str(index.with_suffix("")) for index in found)
        raise ValueError(
            f"the folder holds {len(found)} TensorFlow checkpoints{f' ({names}): name one' if found else ''}"
        )
    try:
        reader = tf.train.load_checkpoint(str(found[0].with_suffix("")))
        return {name: np.asarray(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()}
    except (tf.errors.OpError, RuntimeError) as error:
        raise ValueError(f"damaged checkpoint: {str(error).splitlines()[0]}") from error
