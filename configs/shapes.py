"""The embedded dataset `shapes`: 97 x 97 procedural scenes, no download, trains on a CPU.

  python -m pc2seg_jax.train --config=configs/shapes.py:study --workdir=runs/shapes

Variants: `study` is the benchmark of the README, `demo` a shorter run of the same, `sweep` the shortest, for tables of
many runs. The supervised baseline is the same
command with --config.objective=supervised, and supervision with every mask --config.data.num_labeled=1000 on top.
"""

from pc2seg_jax.config import default_config
from pc2seg_jax.recipes import small_network

STEPS = {"study": 1200, "demo": 500, "sweep": 300}


def get_config(variant: str = "study"):
    if variant not in STEPS:
        raise ValueError(f"configs/shapes.py has the variants {', '.join(STEPS)}, not {variant!r}")
    c = default_config()
    small_network(c)
    c.data.dataset = "shapes"
    c.data.num_labeled = 20
    c.steps = STEPS[variant]
    c.augment.crop_size = (97, 97)
    c.augment.scales = (0.75, 1.0, 1.25)
    c.augment.cutout_size = 20
    c.eval.every = c.steps
    if variant == "sweep":
        c.log_every = 10  # the tables average what is logged
    c.eval.batch_size = 40
    return c
