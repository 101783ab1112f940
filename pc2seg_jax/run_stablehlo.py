"""Runs model.stablehlo of this folder with jax, numpy and Pillow alone: python run_stablehlo.py IMAGE MASK.png"""

import json
import pathlib
import sys

import jax.export
import numpy as np
from PIL import Image

folder = pathlib.Path(__file__).parent
model = json.loads((folder / "model.json").read_text())
program = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
beside = folder / "weights.npz"
weights = [dict(np.load(beside))] if beside.exists() else []

image = np.asarray(Image.open(sys.argv[1]).convert("RGB"))  # of any size
probabilities = np.asarray(program.call(*weights, image[None]))[0]  # [height, width, classes] float32
mask = Image.fromarray(probabilities.argmax(-1).astype(np.uint8))
mask.putpalette(np.asarray(model["palette"], np.uint8).tobytes())
mask.save(sys.argv[2])
for name, share in zip(model["class_names"], probabilities.mean((0, 1)), strict=True):
    print(f"{name}: {share:.1%}")
