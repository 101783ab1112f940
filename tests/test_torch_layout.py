"""The torch layout against an independent implementation, Hugging Face's ResNet in Flax, where it is installed."""

import jax
import numpy as np
import pytest

from pc2seg_jax.models import create_model


def renamed(path):
    """Our path of a backbone tensor -> (collection, path) in Hugging Face's tree."""
    *scopes, kind, leaf = path
    module = {"conv": "convolution", "bn": "normalization"}[kind]
    if scopes == ["conv1"]:
        scope = ["embedder", "embedder"]
    else:
        block, unit, layer = scopes
        inside = ["shortcut"] if layer == "shortcut" else ["layer", str(int(layer[-1]) - 1)]
        stage = ["encoder", "stages", str(int(block[-1]) - 1), "layers", str(int(unit[4:]) - 1)]
        scope = stage + inside
    return "batch_stats" if leaf in ("mean", "var") else "params", (*scope, module, leaf)


def flat(tree, prefix=()):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, (*prefix, name))
        else:
            yield (*prefix, name), value


@pytest.mark.parametrize("depths", [(3, 4, 6, 3)])
def test_features_are_those_of_hugging_face(depths, monkeypatch):
    """At stride 32, the only one of the other library; random weights and statistics."""
    monkeypatch.setenv("USE_TORCH", "0")
    monkeypatch.setenv("USE_TF", "0")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.FlaxResNetModel(
        transformers.ResNetConfig(depths=list(depths), layer_type="bottleneck"), input_shape=(1, 97, 97, 3), seed=0
    )
    expected_tree = dict(flat(theirs.params))

    model = create_model(backbone="resnet50", num_classes=2, output_stride=32, head_width=8)
    params, batch_stats = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    rng = np.random.default_rng(0)
    ours = {"params": params, "batch_stats": batch_stats}
    for collection in ours.values():
        for path, leaf in flat(collection["backbone"]):
            if path[-1] != "kernel":
                leaf = (
                    rng.uniform(0.5, 1.5, leaf.shape)
                    if path[-1] in ("scale", "var")
                    else rng.normal(0, 0.1, leaf.shape)
                )
                node = collection["backbone"]
                for name in path[:-1]:
                    node = node[name]
                node[path[-1]] = leaf.astype(np.float32)

    filled = {}
    for collection in ours.values():
        for path, leaf in flat(collection["backbone"]):
            name, theirs_path = renamed(path)
            filled[(name, *theirs_path)] = leaf
    assert {name: leaf.shape for name, leaf in filled.items()} == {
        name: leaf.shape for name, leaf in expected_tree.items()
    }
    nested = {}
    for path, leaf in filled.items():
        node = nested
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf

    images = rng.uniform(0, 255, (2, 97, 97, 3)).astype(np.float32)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    pixels = ((images - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    expected = np.asarray(theirs(pixels, params=nested, train=False).last_hidden_state).transpose(0, 2, 3, 1)
    outputs, _ = jax.jit(lambda *args: model.features(*args, train=False))(params, batch_stats, images)
    assert outputs["conv5"].shape == expected.shape == (2, 4, 4, 2048)
    np.testing.assert_allclose(outputs["conv5"], expected, rtol=0, atol=1e-4 * expected.std())
