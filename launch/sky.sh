#!/usr/bin/env bash
# Trains on TPU slices of Google Cloud through SkyPilot, as a managed job: it finds a zone, and another after a preemption.
#   bash launch/sky.sh launch --name=seg --accelerator_type=v6e-16 --spot --config=configs/voc12.py:r50,1_8 \
#     --workdir=gs://BUCKET/runs/voc [-- --config.key=value ...]
#   launch                 submits the job of launch/skypilot.yaml with the project's tracked files
#   status                 lists the managed jobs
#   logs                   of the job
#   stop                   ends the job and deletes its hosts; launch continues the run
#   delete                 deletes the controller of managed jobs, the one machine that stays
#   --name=NAME            the job
#   --accelerator_type=T   v5litepod-16, v6e-16 (chips) or v5p-32 (cores, two a chip)
#   --runtime_version=V    image of the hosts; default by accelerator type
#   --spot                 cheaper, and may be preempted at any time
#   --infra=gcp            gcp, gcp/REGION or gcp/REGION/ZONE
#   --config=FILE          configuration of the run, a tracked file of this project
#   --workdir=gs://...     the run's folder
#   --cache=DIR            compilation cache; default WORKDIR/../compiled
#   --max_crashes=5        crashes of one host in a row that end training
#   --follow               logs: goes on showing what comes
#   --controller=NAME      delete: the controller, as sky status names it (sky-jobs-controller-...)
#   --dry-run              prints the commands and runs nothing

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
value_flags="name accelerator_type runtime_version infra config workdir cache max_crashes controller"
switches="spot follow"
name=""
accelerator_type=""
runtime_version=""
spot=""
infra=gcp
config=""
workdir=""
cache=""
max_crashes=5
follow=""
controller=""

submit() {
  # SkyPilot uploads a folder: one that holds tracked files only.
  local folder="runs/sky/$name"
  local fill=(sed -e "s|tpu-v6e-16|tpu-$accelerator_type|" -e "s|v2-alpha-tpuv6e|$runtime_version|" launch/skypilot.yaml)
  run rm -rf "$folder"
  pack "$folder.tar.gz"
  run mkdir -p "$folder"
  run tar -xzf "$folder.tar.gz" -C "$folder"
  if [ -n "$dry_run" ]; then echo "$(quote "${fill[@]}") > $(quote "$folder.yaml")"; else "${fill[@]}" > "$folder.yaml"; fi
  run sky jobs launch "$folder.yaml" "--name=$name" "--workdir=$folder" "--infra=$infra" ${spot:+--use-spot} \
    --env "CACHE=$cache" --env "MAX_CRASHES=$max_crashes" --env "TRAIN=$(quote "${train[@]}")" --detach-run --yes
}

parse_command "launch status logs stop delete" "$@"
require_tool sky 'pip install "skypilot[gcp]", in an environment of its own, then sky check gcp'
require_number max_crashes
[ "$command" = launch ] || [ ${#rest[@]} -eq 0 ] ||
  die "$command takes no arguments of the training command: leave out the lone -- and what follows"
case "$command" in
  launch)
    require name accelerator_type
    set_runtime_version
    set_train .venv/bin/python
    require_bucket workdir
    [ -n "$cache" ] || cache="$(dirname "$workdir")/compiled"
    enter_project
    require_tracked_config
    submit ;;
  status) run sky jobs queue --refresh ;;
  logs) require name; run sky jobs logs "--name=$name" "$([ -n "$follow" ] && echo --follow || echo --no-follow)" ;;
  stop) require name; run sky jobs cancel "--name=$name" --yes ;;
  delete) require controller; run sky down "$controller" --yes ;;
esac
