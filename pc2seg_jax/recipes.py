"""What the files of `configs/` have in common: networks that belong together, and variants by argument."""

import ml_collections


def small_network(c: ml_collections.ConfigDict) -> None:
    """Changes `c` to the network and the batches of a CPU: *Deviations* from the paper, the same for every objective.

    A ResNet of 26 layers and a quarter of the channels, 8 + 8 images, float32, pyramid rates for small feature maps.
    The running statistics forget in tens of steps instead of thousands, because runs are short. One group holds all 8
    images: the pooled features of 4 images are four numbers per channel, too few to normalise by in a short run.
    20 negatives of a group's 784 candidates (97 x 97) are the paper's share, 200 of 8712: 200 of 784 would empty the
    candidates of other classes and go on with the anchor's own. At the start the contrastive loss moves the narrow
    backbone far more strongly than cross-entropy does, so its weight is a tenth of the paper's. The weak view passes
    through the moving average, as in the paper where labels are scarce (VOC 1/16).
    """
    c.model.backbone = "resnet26_beta"
    c.model.width = 16
    c.model.head_width = 64
    c.model.low_level_width = 16
    c.model.multi_grid = (1, 2)
    c.model.aspp_rates = (1, 2, 3)
    c.model.head_decay = 0.95
    c.model.dtype = "float32"
    c.init_from = "textures"
    c.batch_labeled = 8
    c.batch_unlabeled = 8
    c.group_size = 8
    c.teacher_momentum = 0.99
    c.loss.num_negatives = 20
    c.loss.contrast_weight = 0.03
    c.optim.learning_rate = 0.05


# name: backbone, its weights, dilation of the last units, weight decay (of the code that the paper follows)
NETWORKS = {
    "r50": ("resnet50_beta", "resnet_v1_50_beta_imagenet", (1, 2, 4), 1e-4),
    "r101": ("resnet101_beta", "resnet_v1_101_beta_imagenet", (1, 2, 4), 1e-4),
    "x65": ("xception65", "xception_65_imagenet", (1, 1, 1), 4e-5),
}


def paper_network(c: ml_collections.ConfigDict, name: str) -> None:
    """Changes `c` to a backbone of the paper, one of `NETWORKS`, from its ImageNet weights."""
    c.model.backbone, c.init_from, c.model.multi_grid, c.optim.weight_decay = NETWORKS[name]


def choose_variant(file: str, argument: str, **choices: tuple[str, ...]) -> tuple[str, ...]:
    """One value of every choice, by default its first, from an argument such as "r101,1_4" in any order.

    Args:
      file: the configuration file, for messages. choices: values, none of which is in two of them.

    Raises:
      ValueError: an unknown word, or two of one choice.
    """
    chosen = {name: values[0] for name, values in choices.items()}
    given = set()
    for word in filter(None, argument.split(",")):
        name = next((name for name, values in choices.items() if word in values), None)
        if name is None or name in given:
            known = "; ".join(f"{name}: {', '.join(values)}" for name, values in choices.items())
            problem = "is unknown" if name is None else f"is the second {name}"
            raise ValueError(f"{word!r} in {file}:{argument} {problem}; at most one of each is given: {known}")
        given.add(name)
        chosen[name] = word
    return tuple(chosen.values())
