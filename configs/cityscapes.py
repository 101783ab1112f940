"""Cityscapes with few masks: Table 3 of the paper.

  python -m pc2seg_jax.prepare --dataset=cityscapes_seg --manual_dir=FOLDER_OF_THE_ZIPS
  python -m pc2seg_jax.train --config=configs/cityscapes.py:r50,1_8_seed12345 --workdir=runs/city_r50_1_8

Variants: a backbone (r50, r101), a list of labelled images and a recipe. The paper's lists were never published:
`1_8_seed12345` and so on are the draws of French et al. (seeds 12345, 23456, 34567, 45678, 56789), `1_8_stpp_0` to 2
those of ST++. The unlabelled images are all 2,975. The supervised baseline is the same command with
--config.objective=supervised. Validation mIoU of the paper in %, supervised and PC2Seg, over "18 foreground
categories":

          train (2,975)    1_4 (744)        1_8 (377; lists here: 372)    1_30 (100)
  r50     73.64, 75.39     72.86, 73.80     68.06, 72.11                  55.25, 60.37
  r101    74.88, 75.99     73.31, 75.15     68.72, 72.29                  56.09, 62.89

Evaluation prints the mean over the 19 classes and, beside it, over 18 without `road`, the class 0 that a script for VOC
would take for the background. Recipes: `paper`, which does not state crop and steps, has those of DeepLab's own
Cityscapes training, 769 x 769 and 90,000 steps; `voc_like` has those of the paper's VOC runs, 513 x 513 and 30,000.
Hardware of the paper: not stated; 64 + 64 images of 769 x 769 are 2.2 times the memory of configs/voc12.py.
"""

from pc2seg_jax.config import default_config
from pc2seg_jax.recipes import choose_variant, paper_network

SEEDS = (12345, 23456, 34567, 45678, 56789)
LISTS = (
    *(f"{ratio}_seed{seed}" for ratio in ("1_8", "1_4", "1_30") for seed in SEEDS),
    *(f"{ratio}_stpp_{index}" for ratio in ("1_8", "1_4", "1_30") for index in range(3)),
    "train",
)


def paper(c) -> None:
    c.augment.crop_size = (769, 769)
    c.steps = 90_000
    c.eval.every = 5_000


def voc_like(c) -> None:
    c.augment.crop_size = (513, 513)
    c.steps = 30_000


RECIPES = {"paper": paper, "voc_like": voc_like}


def get_config(variant: str = ""):
    network, labeled, recipe = choose_variant(
        "configs/cityscapes.py", variant, backbone=("r50", "r101"), labeled=LISTS, recipe=tuple(RECIPES)
    )
    c = default_config()
    c.data.dataset = "cityscapes"
    c.data.labeled = labeled
    c.data.unlabeled = "train"
    c.data.val = "val"
    c.eval.size = (1025, 2049)
    c.eval.batch_size = 1  # per device: an image has 2.1 million pixels
    c.eval.mean_without = ("road",)
    paper_network(c, network)
    RECIPES[recipe](c)
    return c
