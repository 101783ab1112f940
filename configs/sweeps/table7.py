"""Table 7: the weights of the unlabelled losses. A cell is a pair of multiples of the recipe's own weights.

  python -m pc2seg_jax.sweep --config=configs/voc12.py:r50,1_8 --sweep=configs/sweeps/table7.py --workdir=runs/sweep

The paper, mIoU in %, VOC 1/8, ResNet-50, where the recipe has lambda_1 (contrast) 0.3 and lambda_2 (consistency) 1:

  lambda_2 \\ lambda_1    0        0.1      0.3      0.5      0.7      0.9
  0                      49.57    51.92    52.29    52.28    52.74    53.53
  0.5                    62.31    61.62    62.47    63.83    63.07    63.64
  0.7                    63.46    63.26    63.71    63.79    63.35    63.43
  1                      63.75    63.60    64.63    64.48    62.55    63.15
  1.2                    61.33    64.48    64.30    64.16    63.08    63.03

Both 0 is the supervised baseline. `table7_cross.py` has only the row lambda_2 x 1 and the column lambda_1 x 0.
"""

from pc2seg_jax.sweep_cells import measured

COLUMNS = {"0": 0, "1/3": 1 / 3, "1": 1, "5/3": 5 / 3, "7/3": 7 / 3, "3": 3}  # of lambda_1
ROWS = {
    "0": (0, (49.57, 51.92, 52.29, 52.28, 52.74, 53.53)),
    "0.5": (0.5, (62.31, 61.62, 62.47, 63.83, 63.07, 63.64)),
    "0.7": (0.7, (63.46, 63.26, 63.71, 63.79, 63.35, 63.43)),
    "1": (1, (63.75, 63.60, 64.63, 64.48, 62.55, 63.15)),
    "1.2": (1.2, (61.33, 64.48, 64.30, 64.16, 63.08, 63.03)),
}


def label(row, column):
    return f"lambda_2 x {row} / lambda_1 x {column}"


PAPER = {
    label(row, column): number
    for row, (_, numbers) in ROWS.items()
    for column, number in zip(COLUMNS, numbers, strict=True)
}
BASELINE = label("1", "0")


def get_cells(c):
    def times(value, factor):
        return float(f"{value * factor:.6g}")  # 0.3 x 7/3 is 0.7, and not its neighbour

    def cell(lambda_1, lambda_2):
        if lambda_1 == lambda_2 == 0:
            return {"objective": "supervised"}
        return {"loss.contrast_weight": lambda_1, "loss.consistency_weight": lambda_2}

    cells = {
        label(row, column): cell(times(c.loss.contrast_weight, one), times(c.loss.consistency_weight, two))
        for row, (two, _) in ROWS.items()
        for column, one in COLUMNS.items()
    }
    return measured(c, cells)
