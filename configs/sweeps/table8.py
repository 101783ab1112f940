"""Table 8: what the unlabelled losses cost. A cell is the method with more or fewer of them; see the column of minutes.

  python -m pc2seg_jax.sweep --config=configs/voc12.py:r50,1_8 --sweep=configs/sweeps/table8.py --workdir=runs/sweep

The paper, VOC 1/8, ResNet-50, on hardware that it does not name:

              supervised    consistency only    PC2Seg
  minutes     38            75 to 80            80
  mIoU in %   49.57         63.21               64.63

Table 7 has 63.75 for consistency only; 63.21 is what Table 9 has for the pixel consistency of features.
"""

from pc2seg_jax.sweep_cells import measured

PAPER = {"supervised": 49.57, "consistency only": 63.21, "PC2Seg": 64.63}
BASELINE = "consistency only"


def get_cells(c):
    cells = {
        "supervised": {"objective": "supervised"},
        "consistency only": {"loss.contrast_weight": 0.0},
        "PC2Seg": {},
    }
    return measured(c, cells)
