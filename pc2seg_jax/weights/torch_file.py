"""Reading PyTorch's `.pth` files without PyTorch and without executing them.

A pickle is a program: loading one from the internet runs whatever it contains. This reader knows the few names that a
file of tensors needs and refuses every other one, as `torch.load(weights_only=True)` does.
"""

import collections
import io
import pathlib
import pickle
import sys
import zipfile
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first object of files written before PyTorch 1.6
_LEGACY_VERSION = 1001

_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Storage:
    """The numbers of one or several tensors; `array` is known after the pickle in files of the legacy format."""

    def __init__(self, dtype: np.dtype, size: int):
        self.dtype, self.size = np.dtype(dtype), size
        self.array: np.ndarray | None = None

    def fill(self, data: bytes) -> None:
        if len(data) != self.size * self.dtype.itemsize:
            raise ValueError(f"a tensor has {len(data)} bytes, expected {self.size * self.dtype.itemsize}: truncated?")
        self.array = np.frombuffer(data, self.dtype)


class _Tensor:
    """A view of a storage. The arguments are those of `torch._utils._rebuild_tensor_v2`."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple, stride: tuple, *unused: Any):
        self.storage, self.offset, self.shape, self.stride = storage, offset, tuple(shape), tuple(stride)

    def numpy(self) -> np.ndarray:
        if min((*self.shape, *self.stride), default=0) < 0:
            raise ValueError("a tensor has a negative shape or stride")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        if 0 not in self.shape and not 0 <= self.offset <= last < self.storage.size:
            raise ValueError("a tensor reaches outside its storage")
        item = self.storage.dtype.itemsize
        view = np.lib.stride_tricks.as_strided(
            self.storage.array[self.offset :], self.shape, [step * item for step in self.stride]
        )
        return view.copy()


def _parameter(tensor: _Tensor, *unused: Any) -> _Tensor:
    return tensor


class _TensorUnpickler(pickle.Unpickler):
    """Knows tensors, their storages and ordered dicts; anything else is refused, never imported."""

    _NAMES = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
    } | {("torch", name): dtype for name, dtype in _DTYPES.items()}

    def __init__(self, file: BinaryIO, storages: dict[str, _Storage]):
        super().__init__(file, encoding="utf-8")
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._NAMES:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which a file of tensors does not need, and is not executed: save a "
                "state dict of tensors alone, or a .safetensors file"
            )
        return self._NAMES[module, name]

    def persistent_load(self, reference: tuple) -> _Storage:
        kind, dtype, key, _, size, *view = reference
        if kind != "storage" or any(part is not None for part in view):
            raise pickle.UnpicklingError(f"unknown reference {reference!r}")
        return self._storages.setdefault(key, _Storage(dtype, size))


def read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name.

    The dict may be wrapped in another one as `state_dict` or `model`, as training scripts do, and its names may begin
    with `module.`, as those of several GPUs do.

    Raises:
      ValueError, OSError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile: not such a file, damaged, or with
        anything but tensors in it.
    """
    content = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(value, _Tensor) for value in content.values()):
        raise ValueError("it holds no state dict of tensors")
    tensors = {name: value.numpy() for name, value in content.items() if isinstance(value, _Tensor)}
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _read_zip(path: pathlib.Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is a zip file without PyTorch's data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        storages: dict[str, _Storage] = {}
        content = _TensorUnpickler(io.BytesIO(archive.read(pickles[0])), storages).load()
        for key, storage in storages.items():
            storage.fill(archive.read(f"{folder}data/{key}"))
    return content


def _read_legacy(path: pathlib.Path) -> Any:
    with path.open("rb") as file:
        storages: dict[str, _Storage] = {}

        def load() -> Any:
            return _TensorUnpickler(file, storages).load()

        if load() != _LEGACY_MAGIC or load() != _LEGACY_VERSION:
            raise ValueError("it is not a PyTorch file")
        if not load().get("little_endian", True) or sys.byteorder != "little":
            raise ValueError("it was written on a big-endian machine")
        content = load()
        for key in load():
            size = int.from_bytes(file.read(8), "little")
            if size != storages[key].size:
                raise ValueError(f"storage {key} has {size} numbers, expected {storages[key].size}")
            storages[key].fill(file.read(size * storages[key].dtype.itemsize))
    return content
