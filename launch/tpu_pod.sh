#!/usr/bin/env bash
# Trains on a TPU pod slice, or one TPU host, of Google Cloud: TPU VMs by queued resources.
#   bash launch/tpu_pod.sh watch --name=seg --project=P --zone=us-east5-b --accelerator_type=v6e-16 --spot \
#     --config=configs/voc12.py:r50,1_8 --workdir=gs://BUCKET/runs/voc [-- --config.key=value ...]
#   create                 asks for the TPU and waits until it is there
#   setup                  copies the project's tracked files to all hosts and installs the packages
#   run                    starts training on all hosts, or continues it; returns at once
#   watch                  all of these, and again after a preemption, until training ends; may itself be started again
#   status                 of the TPU, and of training on every host
#   logs                   of one host
#   stop                   training saves on all hosts and ends; the TPU stays, and costs
#   delete                 deletes the TPU; what is in the bucket stays
#   --name=NAME --project=P --zone=Z   the TPU
#   --accelerator_type=T   v5litepod-16, v6e-16 (chips) or v5p-32 (cores, two a chip)
#   --runtime_version=V    image of the hosts; default by accelerator type
#   --spot                 cheaper, and may be preempted at any time
#   --prepare=COMMAND      setup: runs this on all hosts at its end, such as copying the data there
#   --config=FILE          configuration of the run, a tracked file of this project
#   --workdir=gs://...     the run's folder
#   --cache=DIR            compilation cache; default WORKDIR/../compiled
#   --max_crashes=5        crashes of one host in a row that end training
#   --worker=0             host whose log is shown
#   --lines=100            last lines of it
#   --follow               goes on showing what comes
#   --poll=60              seconds between two looks at the TPU
#   --dry-run              prints the commands and runs nothing

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
value_flags="name project zone accelerator_type runtime_version prepare config workdir cache max_crashes worker lines poll"
switches="spot follow"
name=""
project=""
zone=""
accelerator_type=""
runtime_version=""
prepare=""
spot=""
config=""
workdir=""
cache=""
max_crashes=5
worker=0
lines=100
follow=""
poll=60

# Functions that watch calls return the status of what failed: set -e does not work in them there.
queued() { # COMMAND FLAG...
  local command="$1"
  shift
  run gcloud compute tpus queued-resources "$command" "$name" "--project=$project" "--zone=$zone" "$@"
}

on_workers() { # WORKER COMMAND
  run gcloud compute tpus tpu-vm ssh "$name" "--project=$project" "--zone=$zone" "--worker=$1" "--command=$2"
}

request() {
  queued create "--node-id=$name" "--accelerator-type=$accelerator_type" "--runtime-version=$runtime_version" ${spot:+--spot}
}

# Prints the state of the queued resource, NONE where there is none, UNKNOWN where the question failed.
state() {
  local answer
  if answer="$(queued describe '--format=value(state.state)' 2>&1)"; then
    echo "$answer" | tail -n 1 # warnings come before
  else
    case "$answer" in *NOT_FOUND* | *"not found"*) echo NONE ;; *) echo "$answer" >&2; echo UNKNOWN ;; esac
  fi
}

await_active() {
  local now before=""
  if [ -n "$dry_run" ]; then queued describe '--format=value(state.state)'; return; fi
  while true; do
    now="$(state)"
    [ "$now" = "$before" ] || say "$name is $now"
    case "$now" in
      ACTIVE) return ;;
      FAILED | SUSPENDED | NONE) say "$name did not come: see status, then delete it and create it again"; return 1 ;;
    esac
    before="$now"
    sleep "$poll"
  done
}

setup() {
  pack "runs/$name.tar.gz" &&
    run gcloud compute tpus tpu-vm scp "runs/$name.tar.gz" "$name:" "--project=$project" "--zone=$zone" --worker=all &&
    on_workers all "mkdir -p pc2seg_jax && tar -xzf $name.tar.gz -C pc2seg_jax && bash pc2seg_jax/launch/pod_worker.sh setup${prepare:+ && $prepare}"
}

start() {
  # With its platforms named, jax fails where it finds no TPU instead of training on the CPU for weeks.
  local settings=("JAX_PLATFORMS=tpu,cpu" "JAX_COMPILATION_CACHE_DIR=$cache")
  on_workers all "$(quote env "${settings[@]}" bash pc2seg_jax/launch/pod_worker.sh start "--max_crashes=$max_crashes" -- "${train[@]}")"
}

# shellcheck disable=SC2016 # the hosts expand it
workers() { # before setup there is no script that could answer
  on_workers all 'bash pc2seg_jax/launch/pod_worker.sh status 2> /dev/null || echo "training on $(hostname): new"'
}

# Sets next: what to do about a pod whose hosts said this.
decide() { # ANSWERS of pod_worker.sh status
  case "$1" in
    *": new"*) next=setup ;;
    *": lost"*) next=start ;;
    *": running"*) next=look ;; # where some have ended, the others will
    *": stopped"*) next="end 0" ;;
    *)
      next="$(echo "$1" | sed -n 's/.*: ended \([0-9]*\)$/\1/p' | grep -v -e '^0$' -e '^75$' | head -n 1 || true)"
      if [ -n "$next" ]; then next="end $next"; return; fi
      case "$1" in
        *": ended 75"*) next=start ;; # a signal that did not come from stop, as when a host shuts down
        *": ended 0"*) next="end 0" ;;
        *) next=look ;;
      esac ;;
  esac
}

watch() {
  local now answers next failures=0
  while true; do
    next=look
    now="$(state)"
    case "$now" in
      NONE) next=request ;;
      SUSPENDED | FAILED) next=replace ;;
      # A pod that is just being preempted does not answer.
      ACTIVE) answers="$(workers 2> /dev/null)" && decide "$answers" ;;
    esac
    [ "$next" = look ] || say "$name is $now: $next"
    case "$next" in
      look) failed=0 ;;
      request) failed=0; request || failed=1 ;;
      replace) failed=0; { queued delete --force --quiet && request; } || failed=1 ;;
      setup) failed=0; { setup && start; } || failed=1 ;;
      start) failed=0; start || failed=1 ;;
      end*)
        say "training has ended with status ${next#end }; the TPU is still there, and costs: see logs, then delete"
        return "${next#end }" ;;
    esac
    if [ "$failed" = 0 ]; then failures=0; else failures=$((failures + 1)); fi
    [ "$failures" -lt 5 ] || { say "$next failed 5 times in a row: given up"; return 1; }
    sleep "$poll"
  done
}

show_watch() {
  request
  echo "# until it says ACTIVE:"
  await_active
  setup
  start
  echo "# every $poll s:"
  await_active
  workers
  echo "# after a preemption (SUSPENDED), and then all from the top:"
  queued delete --force --quiet
}

parse_command "create setup run watch status logs stop delete" "$@"
require name project zone
require_number max_crashes worker lines poll
require_tool gcloud "install the Google Cloud CLI, https://cloud.google.com/sdk/docs/install"
case "$command" in
  create | watch) require accelerator_type; set_runtime_version ;;
esac
case "$command" in
  setup | run | watch) enter_project ;;
esac
case "$command" in
  run | watch)
    set_train .venv/bin/python
    require_bucket workdir
    [ -n "$cache" ] || cache="$(dirname "$workdir")/compiled"
    require_tracked_config ;;
  *) [ ${#rest[@]} -eq 0 ] || die "$command takes no arguments of the training command: leave out the lone -- and what follows" ;;
esac
case "$command" in
  create) request; await_active ;;
  run) start ;;
  watch) if [ -n "$dry_run" ]; then show_watch; else watch; fi ;;
  status) queued describe; workers ;;
  logs) on_workers "$worker" "tail -n $lines${follow:+ -F} pc2seg_jax/train.log" ;;
  stop) on_workers all "bash pc2seg_jax/launch/pod_worker.sh stop" ;;
  delete) queued delete --force --quiet ;;
  *) "$command" ;;
esac
