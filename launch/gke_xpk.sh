#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster through xpk, which makes a JobSet of the run.
#   bash launch/gke_xpk.sh cluster --cluster=C --project=P --zone=us-east5-b --accelerator_type=v6e-16 --spot
#   bash launch/gke_xpk.sh image --image=us-east5-docker.pkg.dev/P/REPOSITORY/pc2seg
#   bash launch/gke_xpk.sh run --name=seg --cluster=C --project=P --zone=us-east5-b --accelerator_type=v6e-16 \
#     --image=us-east5-docker.pkg.dev/P/REPOSITORY/pc2seg --config=configs/voc12.py:r50,1_8 \
#     --workdir=gs://BUCKET/runs/voc [-- --config.key=value ...]
#   cluster                makes a cluster with one slice
#   image                  builds the image of launch/Dockerfile from the project's tracked files, and pushes it
#   run                    starts training as a workload; the same command continues it when the workload is gone
#   status                 lists the workload
#   logs                   of all its hosts, as long as its pods exist
#   stop                   deletes the workload: training saves and ends; the cluster stays, and costs
#   delete                 deletes the cluster; what is in the bucket stays
#   --cluster=C --project=P --zone=Z   the cluster
#   --accelerator_type=T   v5litepod-16, v6e-16 (chips), v5p-32 (cores), tpu7x-16 and what else xpk knows
#   --spot                 cheaper, and may be preempted at any time
#   --image=IMAGE          in a registry that the cluster can read
#   --name=NAME            the workload
#   --config=FILE          configuration of the run, a tracked file of this project
#   --workdir=gs://...     the run's folder
#   --cache=DIR            compilation cache; default WORKDIR/../compiled
#   --max_restarts=50      how often the workload starts again after a preemption or a crash
#   --lines=100            last lines of every host's log
#   --follow               goes on showing what comes
#   --dry-run              prints the commands and runs nothing

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
value_flags="cluster project zone accelerator_type image name config workdir cache max_restarts lines"
switches="spot follow"
cluster=""
project=""
zone=""
accelerator_type=""
spot=""
image=""
name=""
config=""
workdir=""
cache=""
max_restarts=50
lines=100
follow=""

on_cluster() { # GROUP COMMAND FLAG... of xpk
  local group="$1" action="$2"
  shift 2
  run xpk "$group" "$action" "--cluster=$cluster" "--project=$project" "--zone=$zone" "$@"
}

build() {
  local context=runs/image.tar.gz
  require_tool docker "install Docker, https://docs.docker.com/engine/install"
  pack "$context"
  # TPU hosts are x86-64, many laptops are not.
  local build=(docker build --platform=linux/amd64 --file=launch/Dockerfile "--tag=$image" -)
  if [ -n "$dry_run" ]; then echo "$(quote "${build[@]}") < $context"; else "${build[@]}" < "$context"; fi
  run docker push "$image"
}

start() {
  # With its platforms named, jax fails where it finds no TPU. exec hands SIGTERM on to Python. A workload starts again
  # with all its hosts, by itself after a preemption and status 127 or more; a user's mistake, 2, must end it.
  on_cluster workload create "--workload=$name" "--tpu-type=$accelerator_type" --num-slices=1 "--docker-image=$image" \
    "--max-restarts=$max_restarts" --restart-on-exit-codes=1,75 --termination-grace-period-seconds=120 \
    --env=JAX_PLATFORMS=tpu,cpu "--env=JAX_COMPILATION_CACHE_DIR=$cache" "--command=exec $(quote "${train[@]}")"
}

show_logs() {
  require_tool kubectl "gcloud components install kubectl"
  require_tool gcloud "install the Google Cloud CLI, https://cloud.google.com/sdk/docs/install"
  # xpk's clusters are regional.
  run gcloud container clusters get-credentials "$cluster" "--project=$project" "--location=${zone%-*}"
  run kubectl logs "--selector=xpk.google.com/workload=$name" --prefix "--tail=$lines" --max-log-requests=256 \
    ${follow:+--follow}
}

parse_command "cluster image run status logs stop delete" "$@"
case "$command" in
  image) require image ;;
  *) require cluster project zone; require_tool xpk "pip install xpk, in an environment of its own" ;;
esac
case "$command" in
  cluster) require accelerator_type ;;
  run | status | logs | stop) require name ;;
esac
require_number max_restarts lines
[ "$command" = run ] || [ ${#rest[@]} -eq 0 ] ||
  die "$command takes no arguments of the training command: leave out the lone -- and what follows"
case "$command" in
  cluster)
    on_cluster cluster create "--tpu-type=$accelerator_type" --num-slices=1 "$([ -n "$spot" ] && echo --spot || echo --on-demand)" ;;
  image) enter_project; build ;;
  run)
    require accelerator_type image
    set_train python
    require_bucket workdir
    [ -n "$cache" ] || cache="$(dirname "$workdir")/compiled"
    enter_project
    require_tracked_config
    start ;;
  status) on_cluster workload list "--filter-by-job=$name" ;;
  logs) show_logs ;;
  stop) on_cluster workload delete "--workload=$name" --force ;;
  delete) on_cluster cluster delete --force ;;
esac
