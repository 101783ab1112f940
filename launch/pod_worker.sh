#!/usr/bin/env bash
# One host of a TPU pod; tpu_pod.sh calls it on all of them, in the copy of the project that it made there.
#   bash launch/pod_worker.sh setup | status | stop | start [--max_crashes=5] -- COMMAND...
#   setup                  makes .venv with Python 3.11, the pinned packages and jax[tpu]
#   start                  starts the command under supervise.sh in the background, unless it runs; log: train.log
#   status                 prints running, stopped, ended STATUS, new (no setup yet) or lost (not started, or the host has
#                          restarted)
#   stop                   SIGTERM: training saves and ends
#   --max_crashes=5        crashes in a row that end it
#   --dry-run              prints the commands and runs nothing

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
value_flags="max_crashes"
switches=""
max_crashes=5

setup() {
  local stamp
  stamp="$(cat requirements.txt constraints.txt | cksum)"
  # Packages that change under a running process break it.
  [ -n "$dry_run" ] || ! supervisor > /dev/null || die "training runs on $(hostname): stop it before setup"
  [ -n "$dry_run" ] || [ "$(cat .venv/requirements.stamp 2> /dev/null)" != "$stamp" ] || return 0
  # The images' own Python is 3.10. 3.11 is one that constraints.txt pins packages for, so that a pod that is made again in
  # the middle of a run has the same packages.
  run python3 -m pip install --quiet --user uv
  run python3 -m uv venv --quiet --clear --python 3.11 .venv
  run python3 -m uv pip install --quiet --python .venv/bin/python -r requirements.txt -c constraints.txt 'jax[tpu]'
  [ -n "$dry_run" ] || echo "$stamp" > .venv/requirements.stamp
}

supervisor() { # prints the process id, if it is alive and no other process that got its number
  local pid
  pid="$(cat train.pid 2> /dev/null)" || return 1
  case "$(ps -o args= -p "$pid" 2> /dev/null)" in *supervise.sh*) echo "$pid" ;; *) return 1 ;; esac
}

start() {
  local supervised=(nohup bash launch/supervise.sh "--max_crashes=$max_crashes" --status_file=train.status -- "${rest[@]}")
  if [ -n "$dry_run" ]; then run "${supervised[@]}"; return; fi
  if supervisor > /dev/null; then say "training runs already"; return; fi
  rm -f train.status train.stopped
  "${supervised[@]}" >> train.log 2>&1 < /dev/null &
  echo $! > train.pid
}

show() {
  local state=lost
  if supervisor > /dev/null; then
    state=running
  elif [ -f train.stopped ]; then
    state=stopped
  elif [ -f train.status ]; then
    state="ended $(cat train.status)"
  elif [ ! -f .venv/requirements.stamp ]; then
    state=new
  fi
  echo "training on $(hostname): $state"
}

stop() {
  local pid
  touch train.stopped
  pid="$(supervisor)" || { show; return; }
  kill -TERM "$pid"
  while supervisor > /dev/null; do sleep 0.2; done
  show
}

parse_command "setup start status stop" "$@"
require_number max_crashes
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "$command" in
  start) [ ${#rest[@]} -gt 0 ] || die "no command to start: write it after a lone --"; start ;;
  status) show ;;
  *) "$command" ;;
esac
