"""Published weights: the formats, the name tables, and one sentence for everything that can be wrong with a file."""

import os
import pickle
import tarfile

import numpy as np
import pytest
import safetensors.numpy
from weight_files import (
    SCOPES,
    assert_filled,
    network,
    read_back,
    tensorflow_file,
    torch_file,
    training_leftovers,
    write_tensorflow,
    write_torch,
)

from pc2seg_jax.errors import UserError
from pc2seg_jax.weights import placement


@pytest.mark.parametrize("backbone", list(SCOPES))
def test_a_checkpoint_of_the_zoo_fills_the_backbone(tmp_path, backbone):
    foreign, ours = tensorflow_file(backbone)
    kernels = {"resnet50_beta": 55, "resnet101_beta": 106, "xception65": 69 + 63}[backbone]
    assert sum(name.endswith("weights") for name in foreign) == kernels
    write_tensorflow(tmp_path / "model.ckpt", foreign | training_leftovers(foreign, SCOPES[backbone]))
    found, text = read_back(tmp_path / "model.ckpt", backbone)
    assert_filled(found, ours)
    assert text == f"backbone from {tmp_path / 'model.ckpt'}"


def test_a_checkpoint_may_be_named_in_every_way(tmp_path):
    foreign, ours = tensorflow_file("resnet50_beta")
    folder = tmp_path / "zoo" / "resnet_v1_50"
    folder.mkdir(parents=True)
    write_tensorflow(folder / "model.ckpt", foreign)
    with tarfile.open(tmp_path / "zoo.tar.gz", "w:gz") as archive:
        archive.add(folder, arcname="resnet_v1_50")
    (folder / "._model.ckpt.index").write_bytes(b"of a Mac")
    files = ["zoo", "zoo.tar.gz", *(f"zoo/resnet_v1_50/{path.name}" for path in folder.glob("model*"))]
    assert len(files) == 4
    for name in files:
        assert_filled(read_back(tmp_path / name, "resnet50_beta")[0], ours)


def test_a_whole_segmentation_network_fills_everything_but_the_logits(tmp_path):
    foreign, ours = tensorflow_file("resnet50_beta", parts=("backbone", "head"))
    logits = {"logits/semantic/weights": np.ones((1, 1, 8, 3), np.float32), "logits/semantic/biases": np.ones(3)}
    write_tensorflow(tmp_path / "model.ckpt", foreign | logits)
    found, text = read_back(tmp_path / "model.ckpt", "resnet50_beta")
    assert_filled(found, ours)
    assert text.startswith("backbone and head from")


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_a_state_dict_fills_the_backbone(tmp_path, backbone):
    foreign, ours = torch_file(backbone)
    names = {
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.conv3.weight",
        "layer2.0.downsample.0.weight",
        "layer4.2.bn2.weight",
        "layer4.0.downsample.1.running_mean",
    }
    assert names <= foreign.keys()
    write_torch(tmp_path / "zip.pth", foreign)
    write_torch(tmp_path / "legacy.pth", foreign, legacy=True)
    parallel = {f"module.{name}": value for name, value in foreign.items()}
    write_torch(tmp_path / "wrapped.pth", parallel, wrap=lambda state: {"state_dict": state, "epoch": 3})
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in foreign.items()}, tmp_path / "f.safetensors")
    for name in ("zip.pth", "legacy.pth", "wrapped.pth", "f.safetensors"):
        assert_filled(read_back(tmp_path / name, backbone)[0], ours)


@pytest.mark.parametrize("legacy", [False, True])
def test_views_and_half_precision_in_a_state_dict_are_read_as_they_are(tmp_path, legacy):
    foreign, _ = torch_file("resnet50")
    foreign["bn1.bias"] = foreign["bn1.bias"].astype(np.float16)
    write_torch(tmp_path / "a.pth", foreign | {"fc.weight": np.eye(3, 5, dtype=np.float32)}, transposed=["fc.weight"])
    tensors = placement.read(tmp_path / "a.pth")
    assert tensors.format == "torch"
    np.testing.assert_array_equal(tensors.values["fc.weight"], np.eye(3, 5))
    np.testing.assert_array_equal(tensors.values["bn1.bias"], foreign["bn1.bias"])
    assert tensors.values["bn1.num_batches_tracked"].shape == ()


def faults(foreign):
    """(what is wrong, the file's content, parts of the sentence)"""
    names = [name for name in foreign if name.startswith(("layer", "resnet")) and foreign[name].ndim == 4]
    first, second = names[0], names[1]
    less = {name: value for name, value in foreign.items() if name != first}
    yield "missing", less, ["lacks", first]
    yield "extra", foreign | {f"{second}_2": foreign[second]}, ["has besides", f"{second}_2"]
    yield "renamed", less | {f"{first}_2": foreign[first]}, ["lacks", first, "has besides", f"{first}_2"]
    yield "shape", foreign | {first: np.repeat(foreign[first], 2, axis=0)}, ["holds", "expected"]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("kind", ["tensorflow", "pth", "safetensors"])
def test_what_does_not_fit_is_named(tmp_path, kind, number):
    backbone = "resnet50_beta" if kind == "tensorflow" else "resnet50"
    foreign, _ = tensorflow_file(backbone) if kind == "tensorflow" else torch_file(backbone)
    what, content, parts = list(faults(foreign))[number]
    path = tmp_path / f"{what}.{kind}"
    if kind == "tensorflow":
        write_tensorflow(path, content)
    elif kind == "pth":
        write_torch(path, content)
    else:
        safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in content.items()}, path)
    with pytest.raises(UserError) as caught:
        read_back(path, backbone)
    for part in (str(path), *parts):
        assert part in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("kind", ["tensorflow", "tar.gz", "zip.pth", "legacy.pth", "safetensors", "npz"])
def test_a_truncated_file_is_one_sentence(tmp_path, kind):
    foreign, ours = tensorflow_file("resnet50_beta") if kind in ("tensorflow", "tar.gz") else torch_file("resnet50")
    path = cut = tmp_path / f"weights.{kind}"
    if kind == "tensorflow":
        write_tensorflow(path, foreign)
        cut = next(tmp_path.glob("*.data-*"))
    elif kind == "tar.gz":
        write_tensorflow(tmp_path / "model.ckpt", foreign)
        with tarfile.open(path, "w:gz") as archive:
            for file in tmp_path.glob("model.ckpt*"):
                archive.add(file, arcname=file.name)
    elif kind == "safetensors":
        safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in foreign.items()}, path)
    elif kind == "npz":
        placement.save(path, ours, np.float32)
    else:
        write_torch(path, foreign, legacy=kind.startswith("legacy"))
    content = cut.read_bytes()
    for size in (len(content) * 9 // 10, 100, 0):
        cut.write_bytes(content[:size])
        with pytest.raises(UserError, match="cannot be read as weights") as caught:
            read_back(path, "resnet50")
        assert str(path) in str(caught.value)


def test_a_pickle_is_never_executed(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    foreign, _ = torch_file("resnet50")
    for number, legacy in enumerate((False, True)):
        write_torch(tmp_path / f"{number}.pth", foreign, legacy=legacy, wrap=lambda state: state | {"x": Attack()})
    (tmp_path / "2.pth").write_bytes(pickle.dumps(Attack()))
    for number in range(3):
        with pytest.raises(UserError, match=r"posix\.mkdir.*not executed"):
            read_back(tmp_path / f"{number}.pth", "resnet50")
    assert not (tmp_path / "executed").exists()


def test_layouts_that_only_look_alike_are_refused_with_the_reason(tmp_path):
    beta, _ = tensorflow_file("resnet50_beta")
    torch, _ = torch_file("resnet50")
    write_tensorflow(tmp_path / "beta", beta)
    write_tensorflow(tmp_path / "plain", beta | {"resnet_v1_50/conv1/weights": np.zeros((7, 7, 3, 4), np.float32)})
    write_torch(tmp_path / "torch.pth", torch)
    for file, backbone, reason in (
        ("torch.pth", "resnet50_beta", "stride in the last unit.*another function.*backbone=resnet50"),
        ("torch.pth", "xception65", "torch-style ResNets"),
        ("beta", "resnet50", "stride in the last unit.*resnet50_beta"),
        ("beta", "resnet26_beta", "resnet50_beta"),
        ("plain", "resnet50_beta", "7x7 stem"),
        ("beta", "resnet101_beta", "lacks resnet_v1_101"),
    ):
        with pytest.raises(UserError, match=reason):
            read_back(tmp_path / file, backbone)


def test_a_converted_file_is_the_same_without_loss(tmp_path):
    foreign, ours = torch_file("resnet50")
    write_torch(tmp_path / "a.pth", foreign)
    weights = placement.load(str(tmp_path / "a.pth"), "resnet50", *network("resnet50"))
    placement.save(tmp_path / "a.npz", weights.values, np.float32)
    assert_filled(read_back(tmp_path / "a.npz", "resnet50")[0], ours)
    with pytest.raises(UserError, match=r"backbone/conv1/bn/mean it holds \(4,\), expected nothing"):
        read_back(tmp_path / "a.npz", "resnet50_beta")


@pytest.mark.parametrize("name", ["missing.pth", "folder", "two", "text.pth", "image.npz", "foreign.npz"])
def test_what_is_not_weights_is_one_sentence(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "two").mkdir()
    for prefix in ("a", "b"):
        write_tensorflow(tmp_path / "two" / prefix, {"x": np.zeros(1)})
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "image.npz").write_bytes(b"GIF89a")
    np.savez(tmp_path / "foreign.npz", image=np.zeros(3))
    with pytest.raises(UserError) as caught:
        read_back(tmp_path / name, "resnet50")
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
