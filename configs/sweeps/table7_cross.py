"""Table 7, ten of its thirty cells: the row lambda_2 x 1 and the column lambda_1 x 0 of `table7.py`.

  python -m pc2seg_jax.sweep --config=configs/voc12.py:r50,1_8 --sweep=configs/sweeps/table7_cross.py \\
    --workdir=runs/sweep

The paper, mIoU in %, VOC 1/8, ResNet-50, where the recipe has lambda_1 (contrast) 0.3 and lambda_2 (consistency) 1:

  lambda_2 = 1;  lambda_1 = 0, 0.1, 0.3, 0.5, 0.7, 0.9:    63.75  63.60  64.63  64.48  62.55  63.15
  lambda_1 = 0;  lambda_2 = 0, 0.5, 0.7, 1, 1.2:           49.57  62.31  63.46  63.75  61.33
"""

import pathlib
import runpy

WHOLE = runpy.run_path(str(pathlib.Path(__file__).with_name("table7.py")))
PAPER = {
    label: number
    for label, number in WHOLE["PAPER"].items()
    if label.startswith("lambda_2 x 1 /") or label.endswith("/ lambda_1 x 0")
}
BASELINE = WHOLE["BASELINE"]


def get_cells(c):
    cells = WHOLE["get_cells"](c)
    return {label: cells[label] for label in PAPER}
