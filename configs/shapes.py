"""The embedded dataset `shapes`: no download, trains on a CPU.

python -m pc2seg_jax.train --config=configs/shapes.py:study --workdir=runs/shapes
"""

from pc2seg_jax.config import default_config


def get_config(variant: str = "study"):
    c = default_config()
    c.data.dataset = "shapes"
    c.data.num_labeled = 24
    c.model.backbone = "resnet26_beta"
    c.model.width = 16
    c.model.head_width = 64
    c.model.low_level_width = 16
    c.model.multi_grid = (1, 2)
    c.model.aspp_rates = (1, 2, 3)
    c.model.dtype = "float32"
    c.model.head_decay = 0.95
    c.init_from = "textures"
    c.batch_labeled = 8
    c.batch_unlabeled = 8
    c.augment.crop_size = (97, 97)
    c.augment.scales = (0.75, 1.0, 1.25)
    c.augment.cutout_size = 20
    c.optim.learning_rate = 0.05
    c.steps = {"study": 1500, "demo": 400}[variant]
    c.eval.every = c.steps
    c.eval.batch_size = 40
    c.log_every = 50
    return c
