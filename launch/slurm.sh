#!/usr/bin/env bash
# Trains on the GPUs of a Slurm cluster, one process per GPU. Called on the login node it submits itself with sbatch:
#   bash launch/slurm.sh --nodes=2 --gpus_per_node=8 --config=configs/voc12.py:r50,1_8 --workdir=/shared/runs/voc \
#     [--partition=P] [--account=A] [--time=24:00:00] [-- --config.key=value ...]
# Two minutes before the time limit, and when Slurm preempts the job, training saves; then the job queues again and goes on.
#   --config=FILE          configuration of the run
#   --workdir=DIR          the run's folder, on a file system that all nodes share (or gs://)
#   --nodes=1              nodes
#   --gpus_per_node=8      GPUs, and processes, on each node
#   --cpus_per_gpu=8       CPU cores for each process
#   --partition=P --account=A --time=HH:MM:SS   handed to sbatch
#   --name=pc2seg          name of the job
#   --cache=DIR            compilation cache, shared; default WORKDIR/../compiled
#   --max_requeues=50      how often the job queues again
#   --max_crashes=5        crashes in a row that end it
#   --dry-run              prints the commands and runs nothing
# The log is runs/slurm-JOBID.out; scancel JOBID ends it.

#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=runs/slurm-%j.out
#SBATCH --signal=TERM@120

# Slurm runs a copy of this script from its own folder, in the working directory that sbatch was given.
here="$(dirname "${BASH_SOURCE[0]}")"
[ -f "$here/common.sh" ] || here=launch
# shellcheck source=launch/common.sh
source "$here/common.sh"
value_flags="config workdir nodes gpus_per_node cpus_per_gpu partition account time name cache max_requeues max_crashes"
switches=""
config=""
workdir=""
nodes=1
gpus_per_node=8
cpus_per_gpu=8
partition=""
account=""
time=""
name=pc2seg
cache=""
max_requeues=50
max_crashes=5

submit() { # "$@" of this script
  require_tool sbatch "call this on a login node of a Slurm cluster"
  local options=("--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$gpus_per_node" "--gpus-per-node=$gpus_per_node"
    "--cpus-per-task=$cpus_per_gpu" "--chdir=$PWD")
  [ -z "$partition" ] || options+=("--partition=$partition")
  [ -z "$account" ] || options+=("--account=$account")
  [ -z "$time" ] || options+=("--time=$time")
  run mkdir -p runs # sbatch does not make the folder of its log
  local flag flags=()
  for flag in "$@"; do [ "$flag" = --dry-run ] || flags+=("$flag"); done # what is printed submits a job that trains
  run sbatch "${options[@]}" launch/slurm.sh "${flags[@]}"
}

start() {
  # No --gpus-per-task: every process sees the GPUs of its node, and jax takes the one of its SLURM_LOCALID.
  # Processes that lose a peer end by themselves, saved; srun must not kill them at the first bad exit.
  run srun --kill-on-bad-exit=0 --cpus-per-task="$cpus_per_gpu" \
    env JAX_PLATFORMS=cuda,cpu "JAX_COMPILATION_CACHE_DIR=$cache" "${train[@]}"
}

finish() { # STATUS of srun, the highest of its processes
  local crashes=0 file="runs/slurm-$SLURM_JOB_ID.crashes" # a requeued job starts anew: only a file remembers
  case "$1" in
    0 | 2) run rm -f "$file"; exit "$1" ;;
    75) ;;
    *) crashes=$(($(cat "$file" 2> /dev/null || echo 0) + 1)) ;;
  esac
  [ -n "$dry_run" ] || echo "$crashes" > "$file"
  if [ "$crashes" -ge "$max_crashes" ] || [ "${SLURM_RESTART_COUNT:-0}" -ge "$max_requeues" ]; then
    say "ended with status $1, crash $crashes in a row, after queueing again ${SLURM_RESTART_COUNT:-0} times: not queued again"
    exit "$1"
  fi
  say "ended with status $1: queueing again"
  run scontrol requeue "$SLURM_JOB_ID"
}

parse_flags "$@"
set_train .venv/bin/python
require_number nodes gpus_per_node cpus_per_gpu max_requeues max_crashes
[ -n "$cache" ] || cache="$(dirname "$workdir")/compiled"
if [ -z "${SLURM_JOB_ID:-}" ]; then
  cd "$here/.."
  submit "$@"
  exit
fi
require_tool srun "load Slurm's commands on the nodes"
status=0
start || status=$?
finish "$status"
