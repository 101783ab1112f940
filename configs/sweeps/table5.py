"""Table 5: how negatives are drawn. A cell is a strategy; all read the masks of unlabelled images to measure.

  python -m pc2seg_jax.sweep --config=configs/voc12.py:r50,1_8 --sweep=configs/sweeps/table5.py --workdir=runs/sweep

The paper, VOC 1/8, ResNet-50; false-negative rate (FNR): share of the drawn negatives that are of the anchor's class.

              uniform    different_image    pseudo_label    different_image_pseudo_label    oracle
  mIoU in %   62.70      63.33              64.38           64.63                           64.78
  FNR in %    14.77      3.42               2.83            2.80                            -
"""

from pc2seg_jax.sweep_cells import measured

PAPER = {
    "uniform": 62.70,
    "different_image": 63.33,
    "pseudo_label": 64.38,
    "different_image_pseudo_label": 64.63,
    "oracle": 64.78,
}


def get_cells(c):
    return measured(c, {strategy: {"loss.strategy": strategy} for strategy in PAPER})
