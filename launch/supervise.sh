#!/usr/bin/env bash
# Runs a command and starts it again when that can help:
#   bash launch/supervise.sh [--max_crashes=5] [--pause=10] [--status_file=FILE] [--dry-run] -- COMMAND...
# Exit status of the command:
#   0   finished           the end
#   2   a user's mistake   the end: it would be the same again
#   75  "resume me"        starts again at once (preempted, or another host was lost)
#   else, a crash          starts again after a pause, until so many crashes in a row
# SIGTERM, and Ctrl-C, go to the command as SIGTERM; the supervisor waits for it and ends with 75 if it asks for resuming.
#   --max_crashes=5        crashes in a row that end it, with the status of the last
#   --pause=10             seconds before the start after the first crash, twice as long after each further one, at most 60
#   --status_file=FILE     gets the exit status of the supervisor
#   --dry-run              only prints the command

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
value_flags="max_crashes pause status_file"
switches=""
max_crashes=5
pause=10
status_file=""
stopping="" # a signal has come
signalled="" # a signal has come during this wait
child=""

stop() {
  stopping=1
  signalled=1
  # SIGTERM for both signals: bash starts background commands with SIGINT ignored.
  if [ -n "$child" ]; then kill -TERM "$child" 2> /dev/null || true; fi
}

# Sets status. A signal interrupts wait, so that only a wait without a signal has the status of the command.
await() { # COMMAND...
  "$@" &
  child=$!
  if [ -n "$stopping" ]; then kill -TERM "$child"; fi # the signal came before child was known
  while true; do
    signalled=""
    status=0
    wait "$child" || status=$?
    [ -n "$signalled" ] || break
  done
  child=""
}

end() { # STATUS REASON
  say "$2"
  exit "$1"
}

parse_flags "$@"
require_number max_crashes pause
[ ${#rest[@]} -gt 0 ] || die "no command to supervise: write it after a lone --"
if [ -n "$dry_run" ]; then run "${rest[@]}"; exit; fi
if [ -n "$status_file" ]; then trap 'echo "$?" > "$status_file"' EXIT; fi
trap stop TERM INT

crashes=0
while true; do
  await "${rest[@]}"
  case "$status" in
    0) exit 0 ;;
    2) end 2 "the command ended with status 2, a mistake that would be the same again: not started again" ;;
  esac
  if [ -n "$stopping" ]; then
    # 143: the signal came before the command could handle it, so nothing is half done.
    case "$status" in 75 | 143) end 75 "stopped by a signal: the same command continues it" ;; esac
    end "$status" "stopped by a signal, and the command ended with status $status"
  fi
  if [ "$status" = 75 ]; then
    crashes=0
    say "the command asked to be resumed (status 75): starting it again"
    continue
  fi
  crashes=$((crashes + 1))
  [ "$crashes" -lt "$max_crashes" ] || end "$status" "crash $crashes of $max_crashes in a row (status $status): not started again"
  seconds=$((pause << (crashes - 1)))
  [ "$seconds" -le 60 ] || seconds=60
  say "crash $crashes of $max_crashes in a row (status $status): starting again in $seconds s"
  await sleep "$seconds"
  [ -z "$stopping" ] || end 75 "stopped by a signal: the same command continues it"
done
