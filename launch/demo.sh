#!/usr/bin/env bash
# The whole path on the embedded dataset: train a supervised baseline and PC2Seg with the same labels, steps and labelled
# batches, evaluate, predict, report. Everything goes to runs/demo; a second call continues or reuses what is there.
#   bash launch/demo.sh [--config.key=value ...]
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
out=runs/demo

for objective in supervised pc2seg; do
  echo "== train $objective"
  "$python" -m pc2seg_jax.train --config=configs/shapes.py:demo --workdir="$out/$objective" \
    --config.objective="$objective" "$@"
done

for objective in supervised pc2seg; do
  echo "== evaluate $objective, from its folder alone"
  "$python" -m pc2seg_jax.evaluate --workdir="$out/$objective"
done

echo "== predict masks for a folder of images"
if [ ! -d "$out/shapes" ]; then # renamed when complete, so that an interrupted export starts again
  rm -rf "$out/shapes.part"
  "$python" -m pc2seg_jax.export_shapes --output="$out/shapes.part"
  mv "$out/shapes.part" "$out/shapes"
fi
mkdir -p "$out/images"
cp "$out"/shapes/images/val_0000?.png "$out"/shapes/images/val_0001[01].png "$out/images/"
"$python" -m pc2seg_jax.predict --workdir="$out/pc2seg" --images="$out/images" --output="$out/predictions" --overwrite

echo "== report"
"$python" -m pc2seg_jax.report --runs="$out/supervised,$out/pc2seg" --output="$out/report.html"
