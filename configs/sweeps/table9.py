"""Table 9: other losses. A cell is a loss on labels (row) with a loss on features (column), the weights being equal.

  python -m pc2seg_jax.sweep --config=configs/voc12.py:r50,1_8 --sweep=configs/sweeps/table9.py --workdir=runs/sweep

The paper, mIoU in %, VOC 1/8, ResNet-50; `cosine` is its normalised l_2 (eq. 3):

                   none     image_contrast    pixel_consistency    pixel_contrast
  cross_entropy    63.54    60.41             59.33                58.47
  cosine           63.75    62.49             63.21                64.63
"""

from pc2seg_jax.sweep_cells import measured

COLUMNS = ("none", "image_contrast", "pixel_consistency", "pixel_contrast")
ROWS = {"cross_entropy": (63.54, 60.41, 59.33, 58.47), "cosine": (63.75, 62.49, 63.21, 64.63)}
PAPER = {
    f"{row} / {column}": number
    for row, numbers in ROWS.items()
    for column, number in zip(COLUMNS, numbers, strict=True)
}
BASELINE = "cosine / none"


def get_cells(c):
    cells = {}
    for label in PAPER:
        row, column = label.split(" / ")
        feature = {"loss.contrast_weight": 0.0} if column == "none" else {"loss.feature_loss": column}
        cells[label] = {"loss.label_loss": row} | feature
    return measured(c, cells)
