"""Your own images: a folder of images, and masks for a few of them.

  python -m pc2seg_jax.train --config=configs/folder.py --config.data.root=FOLDER --workdir=runs/mine
  python -m pc2seg_jax.train --config=configs/folder.py:small --config.data.root=FOLDER --workdir=runs/mine

FOLDER/images/<name>.jpg|png   every image, RGB or grey, any sizes
FOLDER/masks/<name>.png        class ids (index or palette PNG) of the labelled and the validation images only
FOLDER/labeled.txt             names of the labelled images, one per line     (--config.data.labeled)
FOLDER/train.txt               names of all images to learn from              (--config.data.unlabeled)
FOLDER/val.txt                 names of the validation images                 (--config.data.val)
FOLDER/classes.txt             optional: class names, one per line, in the order of the ids

Variants: `default` is the paper's ResNet-50 recipe, for an accelerator. `small` is a narrow network that trains on a
CPU, from the shipped backbone; shrink large images for it with --config.data.max_side=256.
"""

from pc2seg_jax.config import default_config
from pc2seg_jax.recipes import small_network


def get_config(variant: str = "default"):
    c = default_config()
    c.data.dataset = "folder"
    c.data.root = ""  # --config.data.root=FOLDER
    if variant == "small":
        small_network(c)
        c.steps = 1_500
        c.augment.crop_size = (161, 161)
        c.augment.cutout_size = 32
        c.eval.every = 500
    elif variant != "default":
        raise ValueError(f"configs/folder.py has the variants default and small, not {variant!r}")
    return c
