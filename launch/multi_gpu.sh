#!/usr/bin/env bash
# Trains on all GPUs of this machine: one process sees them all, under supervise.sh.
#   bash launch/multi_gpu.sh --config=configs/voc12.py:r50,1_8 --workdir=runs/voc [-- --config.key=value ...]
#   --config=FILE          configuration of the run
#   --workdir=DIR          the run's folder; the same command continues the run that is there
#   --gpus=0,1             only these GPUs
#   --cache=DIR            compilation cache; default ~/.cache/pc2seg_jax/compiled
#   --max_crashes=5        crashes in a row that end it
#   --dry-run              prints the command and runs nothing
# Before the first call: bash launch/demo.sh makes .venv, and .venv/bin/python -m pip install "jax[cuda12]" adds the GPU.

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
value_flags="config workdir gpus cache max_crashes"
switches=""
config=""
workdir=""
gpus=""
cache="$HOME/.cache/pc2seg_jax/compiled"
max_crashes=5

parse_flags "$@"
set_train .venv/bin/python
require_number max_crashes
require_tool nvidia-smi "this machine has no NVIDIA driver; without a GPU run python -m pc2seg_jax.train itself"
# With its platforms named, jax fails where it finds no GPU instead of training on the CPU for weeks.
settings=("JAX_PLATFORMS=cuda,cpu" "JAX_COMPILATION_CACHE_DIR=$cache")
[ -z "$gpus" ] || settings+=("CUDA_VISIBLE_DEVICES=$gpus")

run cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -n "$dry_run" ] || [ -x .venv/bin/python ] || die "there is no .venv: make it with bash launch/demo.sh and add jax[cuda12]"
supervised=(bash launch/supervise.sh "--max_crashes=$max_crashes" -- "${train[@]}")
if [ -n "$dry_run" ]; then run env "${settings[@]}" "${supervised[@]}"; else exec env "${settings[@]}" "${supervised[@]}"; fi
