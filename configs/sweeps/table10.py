"""Table 10: which features the contrastive loss sees. A cell is a layer, or two whose losses add up.

  python -m pc2seg_jax.sweep --config=configs/voc12.py:r50,1_8 --sweep=configs/sweeps/table10.py --workdir=runs/sweep

The paper, VOC 1/8, ResNet-50:

              conv3    conv4    conv5    encoder    decoder    conv5+encoder
  mIoU in %   60.70    63.90    64.63    64.25      63.74      64.59
"""

from pc2seg_jax.sweep_cells import measured

PAPER = {"conv3": 60.70, "conv4": 63.90, "conv5": 64.63, "encoder": 64.25, "decoder": 63.74, "conv5+encoder": 64.59}
BASELINE = "conv5"


def get_cells(c):
    return measured(c, {label: {"model.contrast_layers": tuple(label.split("+"))} for label in PAPER})
