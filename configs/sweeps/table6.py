"""Table 6: how many negatives an anchor has. A cell is a multiple of the recipe's own number N.

  python -m pc2seg_jax.sweep --config=configs/voc12.py:r50,1_8 --sweep=configs/sweeps/table6.py --workdir=runs/sweep

The paper, VOC 1/8, ResNet-50, where the recipe's N is 200; none is without the contrastive loss:

  N           none     50       100      200      400      800      1600
  mIoU in %   63.75    64.08    64.24    64.63    64.84    65.03    out of memory
"""

from pc2seg_jax.sweep_cells import measured

FACTORS = {"N x 1/4": 1 / 4, "N x 1/2": 1 / 2, "N x 1": 1, "N x 2": 2, "N x 4": 4, "N x 8": 8}
PAPER = {"none": 63.75} | dict(zip(FACTORS, (64.08, 64.24, 64.63, 64.84, 65.03, None), strict=True))


def get_cells(c):
    counts = {label: max(1, round(factor * c.loss.num_negatives)) for label, factor in FACTORS.items()}
    cells = {label: {"loss.num_negatives": count} for label, count in counts.items()}
    return measured(c, {"none": {"loss.contrast_weight": 0.0}} | cells)
