"""Table 11: beginning with supervised training. A cell is a share of all steps before the unlabelled losses begin.

  python -m pc2seg_jax.sweep --config=configs/voc12.py:r50,1_8 --sweep=configs/sweeps/table11.py --workdir=runs/sweep

The paper, VOC 1/8, ResNet-50, of 30,000 steps:

  steps       0        2,000    4,000    8,000    12,000
  mIoU in %   64.63    63.30    62.67    62.56    62.50
"""

from pc2seg_jax.sweep_cells import measured

THIRTIETHS = {"0": 0, "2/30 of the steps": 2, "4/30 of the steps": 4, "8/30 of the steps": 8, "12/30 of the steps": 12}
PAPER = dict(zip(THIRTIETHS, (64.63, 63.30, 62.67, 62.56, 62.50), strict=True))


def get_cells(c):
    return measured(c, {label: {"loss.delay": round(c.steps * part / 30)} for label, part in THIRTIETHS.items()})
