"""What the tensors of our networks are called in the checkpoints of other frameworks.

A path of ours is, for instance, `backbone/block1/unit1/conv1/conv/kernel`: part, scopes, layer kind, leaf. It names one
tensor, in `params` or in `batch_stats`.
"""

import re

# Scope of each backbone's variables in the TensorFlow checkpoints of the DeepLab model zoo; "beta" is not in the names.
TENSORFLOW_SCOPES = {
    "resnet50_beta": "resnet_v1_50",
    "resnet101_beta": "resnet_v1_101",
    "resnet50": "resnet_v1_50",
    "resnet101": "resnet_v1_101",
    "xception65": "xception_65",
}

_TENSORFLOW_LEAVES = {
    "conv/kernel": "weights",
    "conv/bias": "biases",
    "bn/scale": "BatchNorm/gamma",
    "bn/bias": "BatchNorm/beta",
    "bn/mean": "BatchNorm/moving_mean",
    "bn/var": "BatchNorm/moving_variance",
}


def tensorflow_name(path: str, backbone: str) -> str:
    """Name of a tensor in a TF-slim checkpoint of DeepLab.

    Kernels have the same layout there (HWIO), except depthwise ones, [kh, kw, C, 1], ours being [kh, kw, 1, C].

    Args:
      path: of a tensor in `params` or `batch_stats`, beginning with `backbone` or `head`.
      backbone: a key of `TENSORFLOW_SCOPES`.
    """
    part, *scopes, kind, leaf = path.split("/")
    if part == "backbone":
        module = "xception_module" if backbone == "xception65" else "bottleneck_v1"
        scopes = [re.sub(r"^(entry|middle|exit)_flow_block", r"\1_flow/block", scope) for scope in scopes]
        scopes = [re.sub(r"^unit(\d+)$", rf"unit_\1/{module}", scope) for scope in scopes]
        if backbone == "xception65" and scopes[0].startswith("conv1_"):
            scopes = ["entry_flow", *scopes]
        scopes = [TENSORFLOW_SCOPES[backbone], *scopes]
    elif scopes == ["logits"]:
        scopes = ["logits", "semantic"]
    name = _TENSORFLOW_LEAVES[f"{kind}/{leaf}"]
    return "/".join([*scopes, "depthwise_weights" if name == "weights" and "_depthwise" in scopes[-1] else name])


_TORCH_LEAVES = {
    "conv/kernel": "weight",
    "bn/scale": "weight",
    "bn/bias": "bias",
    "bn/mean": "running_mean",
    "bn/var": "running_var",
}


def torch_name(path: str) -> str:
    """Name of a backbone tensor in the state dict of torchvision's ResNets.

    Convolution kernels are OIHW there, HWIO here. block1/unit1/conv2 is layer1.0.conv2, shortcut is downsample.

    Args:
      path: of a tensor in `params` or `batch_stats` of a torch-style backbone, beginning with `backbone`.
    """
    _, *scopes, kind, leaf = path.split("/")
    layer = scopes.pop()
    prefix = "".join(
        f"layer{name.removeprefix('block')}." if name.startswith("block") else f"{int(name.removeprefix('unit')) - 1}."
        for name in scopes
    )
    if layer == "shortcut":
        module = "downsample.0" if kind == "conv" else "downsample.1"
    else:
        module = layer if kind == "conv" else layer.replace("conv", "bn")
    return f"{prefix}{module}.{_TORCH_LEAVES[f'{kind}/{leaf}']}"
