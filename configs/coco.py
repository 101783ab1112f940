"""COCO 2017 with few masks: Table 4 of the paper.

  python -m pc2seg_jax.prepare --dataset=coco_seg
  python -m pc2seg_jax.train --config=configs/coco.py:x65,1_64 --workdir=runs/coco_x65_1_64

Variants: a list of labelled images, and a backbone (x65, r50, r101). The unlabelled images are all 118,287 of
train2017, which the paper does not state. The supervised baseline is the same command with
--config.objective=supervised. Validation mIoU of the paper in %, Xception-65:

               train     1_8      1_16     1_32     1_64     1_128    1_256    1_512
  supervised   50.10     47.91    45.12    42.24    37.80    33.60    27.96    22.94
  PC2Seg       50.67     49.91    48.07    46.05    43.67    40.12    37.53    29.94

The lists 1_32 to 1_512 are the published ones; those of 1_8 and 1_16 were not: here they are every 8th and 16th image
of one fixed permutation. How overlapping instances and crowds became labels is not stated either: here small instances
lie on top of large ones and of crowds, and nothing is ignored; other rules are other names of `prepare` and of
--config.data.rule. Steps: 200,000 as in the code that the paper follows. Hardware of the paper: not stated.
"""

from pc2seg_jax.config import default_config
from pc2seg_jax.recipes import choose_variant, paper_network

LISTS = ("1_64", "1_8", "1_16", "1_32", "1_128", "1_256", "1_512", "train")


def paper(c) -> None:
    c.steps = 200_000
    c.eval.every = 10_000


RECIPES = {"paper": paper}


def get_config(variant: str = ""):
    network, labeled, recipe = choose_variant(
        "configs/coco.py", variant, backbone=("x65", "r50", "r101"), labeled=LISTS, recipe=tuple(RECIPES)
    )
    c = default_config()
    c.data.dataset = "coco"
    c.data.labeled = labeled
    c.data.unlabeled = "train"
    c.data.val = "val"
    c.eval.size = (641, 641)
    paper_network(c, network)
    RECIPES[recipe](c)
    return c
