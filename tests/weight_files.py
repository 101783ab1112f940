"""Files of weights in their original formats, written without the programs that usually write them.

And what to put into them: random numbers under the names of published files, for narrow networks.
"""

import collections
import functools
import io
import pickle
import sys
import types
import zipfile

import jax
import numpy as np
import pytest

from pc2seg_jax.models import create_model
from pc2seg_jax.models.backbones import BACKBONES
from pc2seg_jax.weights import placement

_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


def write_tensorflow(prefix, values):
    """A checkpoint of named variables, as `tf.train.Saver` writes it."""
    import tensorflow as tf

    names = sorted(values)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(values[name]) for name in names],
    )


class _Storage:
    def __init__(self, key, array):
        self.key, self.array = str(key), array


class _Tensor:
    """Pickles as `torch.Tensor` does."""

    def __init__(self, storage, offset, shape, stride):
        self.arguments = (storage, offset, shape, stride, False, collections.OrderedDict())

    def __reduce_ex__(self, protocol):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


def _fake_torch():
    """Modules whose names a pickle can refer to."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*arguments):
        raise NotImplementedError

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in _STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    return {"torch": torch, "torch._utils": utils}


def _pickler(file, view_metadata):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, _Storage):
                return None
            kind = getattr(sys.modules["torch"], _STORAGES[value.array.dtype.name])
            return ("storage", kind, value.key, "cpu", value.array.size, *view_metadata)

    return Pickler(file, protocol=2)


def write_torch(path, values, *, legacy=False, wrap=lambda state: state, transposed=()):
    """A state dict as `torch.save` writes it.

    Args:
      legacy: the format before PyTorch 1.6.
      wrap: what is saved instead of the state dict itself.
      transposed: names of matrices that are stored transposed, as views with strides, two numbers into their storage.
    """
    storages, state = [], collections.OrderedDict()
    for key, (name, value) in enumerate(values.items()):
        value = np.asarray(value)
        stored, offset = np.ravel(value.T if name in transposed else value), 0
        stride = [step // value.itemsize for step in np.ascontiguousarray(value).strides] if value.ndim else []
        if name in transposed:
            offset, stride = 2, [1, value.shape[0]]
            stored = np.concatenate([np.zeros(2, value.dtype), stored])
        storages.append(_Storage(key, stored))
        state[name] = _Tensor(storages[-1], offset, value.shape, tuple(stride))
    state._metadata = collections.OrderedDict(version=1)
    with pytest.MonkeyPatch.context() as patch:
        for name, module in _fake_torch().items():
            patch.setitem(sys.modules, name, module)
        if legacy:
            with path.open("wb") as file:
                for header in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
                    pickle.dump(header, file, protocol=2)
                _pickler(file, [None]).dump(wrap(state))
                pickle.dump([storage.key for storage in storages], file, protocol=2)
                for storage in storages:
                    file.write(storage.array.size.to_bytes(8, "little") + storage.array.tobytes())
            return
        buffer = io.BytesIO()
        _pickler(buffer, []).dump(wrap(state))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr("archive/byteorder", "little")
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes())
        archive.writestr("archive/version", "3\n")


SCOPES = {"resnet50_beta": "resnet_v1_50", "resnet101_beta": "resnet_v1_101", "xception65": "xception_65"}


@functools.cache
def network(backbone, width=4):
    """(params, batch_stats) of zeros."""
    model = create_model(
        backbone=backbone,
        num_classes=3,
        width=width,
        head_width=8,
        low_level_width=4,
        projection_dim=4,
        multi_grid=(1,) * BACKBONES[backbone].num_multi_grid,
    )
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(model.init, jax.random.key(0)))


def tensorflow_file(backbone, parts=("backbone",)):
    """{foreign name: value} and {our path: value}, the names composed as `protocol.md` lists them."""
    rng, foreign, ours = np.random.default_rng(0), {}, {}
    leaves = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
    for path, zeros in placement.flatten(*network(backbone)).items():
        _, part, *scopes, kind, leaf = path.split("/")
        if part not in parts or scopes == ["logits"]:
            continue
        value = rng.normal(size=zeros.shape).astype(np.float32)
        ours[path] = value
        if part == "backbone" and backbone == "xception65":
            if scopes[0].startswith("conv1"):
                name = f"xception_65/entry_flow/{scopes[0]}"
            else:
                flow, block = scopes[0].split("_flow_")
                unit = scopes[1].replace("unit", "unit_")
                name = f"xception_65/{flow}_flow/{block}/{unit}/xception_module/{scopes[2]}"
        elif part == "backbone":
            name = f"{SCOPES[backbone]}/{scopes[0]}"
            if len(scopes) == 3:
                name += f"/{scopes[1].replace('unit', 'unit_')}/bottleneck_v1/{scopes[2]}"
        else:
            name = "/".join(scopes)
        if kind == "bn":
            foreign[f"{name}/BatchNorm/{leaves[leaf]}"] = value
        elif name.endswith("_depthwise"):
            foreign[f"{name}/depthwise_weights"] = value.transpose(0, 1, 3, 2)
        else:
            foreign[f"{name}/weights"] = value
    return foreign, ours


def torch_file(backbone, width=4):
    """{foreign name: value} and {our path: value} of torchvision's ResNets, classifier and counters included."""
    rng, foreign, ours = np.random.default_rng(1), {}, {}
    leaves = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for path, zeros in placement.flatten(*network(backbone, width)).items():
        _, part, *scopes, kind, leaf = path.split("/")
        if part != "backbone":
            continue
        ours[path] = rng.normal(size=zeros.shape).astype(np.float32)
        if len(scopes) == 1:
            layer = {"conv": "conv1", "bn": "bn1"}[kind]
        else:
            block, unit, convolution = scopes
            number = convolution[-1]
            layer = {"conv": f"conv{number}", "bn": f"bn{number}"}[kind]
            if convolution == "shortcut":
                layer = {"conv": "downsample.0", "bn": "downsample.1"}[kind]
            layer = f"layer{block[5:]}.{int(unit[4:]) - 1}.{layer}"
        if kind == "conv":
            foreign[f"{layer}.weight"] = np.moveaxis(ours[path], (3, 2), (0, 1))
        else:
            foreign[f"{layer}.{leaves[leaf]}"] = ours[path]
            foreign[f"{layer}.num_batches_tracked"] = np.int64(7)
    foreign |= {"fc.weight": np.zeros((1000, 5), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    return foreign, ours


def training_leftovers(foreign, scope):
    """What the zoo's files hold besides: optimiser slots, a moving average, the ImageNet classifier, the step."""
    slots = ("Momentum", "RMSProp", "RMSProp_1", "ExponentialMovingAverage")
    extra = {f"{name}/{slot}": value for name, value in list(foreign.items())[:5] for slot in slots}
    classifier = {f"{scope}/logits/weights": np.zeros((1, 1, 8, 1001), np.float32)}
    return extra | classifier | {"global_step": np.int64(30_000), f"{scope}/mean_rgb": np.ones(3, np.float32)}


def read_back(init_from, backbone):
    params, batch_stats = network(backbone)
    weights = placement.load(str(init_from), backbone, params, batch_stats)
    params, batch_stats, text = placement.place(weights, params, batch_stats)
    return placement.flatten(params, batch_stats), text


def assert_filled(found, ours):
    """`ours` in its places and nothing else touched."""
    for path, value in found.items():
        np.testing.assert_array_equal(value, ours.get(path, 0), err_msg=path)
        assert value.dtype == np.float32
