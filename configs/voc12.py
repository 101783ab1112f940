"""VOC 2012 with few masks: Tables 1 and 2 of the paper.

  python -m pc2seg_jax.prepare --dataset=voc2012_seg
  python -m pc2seg_jax.train --config=configs/voc12.py:r50,1_8 --workdir=runs/voc_r50_1_8

Variants: a backbone (r50, r101, x65) and a list of labelled images. The unlabelled images are all 10,582 of TRAIN and
AUG. The supervised baseline is the same command with --config.objective=supervised. Validation mIoU of the paper in %,
supervised and PC2Seg; 1/16 is the mean over the three lists, whose weak view is a moving average's:

          1_2 (732)        1_4 (366)        1_8 (183)        1_16_{0,1,2} (92)       train (1,464)
  r50     65.73, 70.90     57.76, 67.62     49.57, 64.63     43.97, 56.90 +- 1.30    68.81, 72.26
  r101    66.28, 73.05     60.02, 69.78     49.83, 66.28     40.02, 57.00 +- 1.32    72.00, 74.15

Other lists: 1_2_u2pl, or any file or rule with --config.data.labeled. Hardware of the paper: not stated; 38 minutes
supervised, 80 PC2Seg. The code that it follows has 16 GPUs of 16 GB with 4 + 4 images each, a v5e:4x4 or one large GPU
here; with less, --config.accumulate=4 computes the same in parts.
"""

from pc2seg_jax.config import default_config
from pc2seg_jax.recipes import choose_variant, paper_network

LISTS = ("1_8", "1_2", "1_2_u2pl", "1_4", "1_16_0", "1_16_1", "1_16_2", "train")


def paper(c, network: str, labeled: str) -> None:
    """The recipe of the paper, most of which is the default."""
    paper_network(c, network)
    if labeled.startswith("1_16"):
        c.teacher_momentum = 0.99


RECIPES = {"paper": paper}


def get_config(variant: str = ""):
    network, labeled, recipe = choose_variant(
        "configs/voc12.py", variant, backbone=("r50", "r101", "x65"), labeled=LISTS, recipe=tuple(RECIPES)
    )
    c = default_config()
    c.data.dataset = "voc2012"
    c.data.labeled = labeled
    c.data.unlabeled = "train_aug"
    c.data.val = "val"
    c.eval.size = (513, 513)
    RECIPES[recipe](c, network, labeled)
    return c
