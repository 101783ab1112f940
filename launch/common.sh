# Sourced by the launchers: flags, dry run, errors. It keeps to bash 3.2, which macOS has: launchers run on laptops.
# A script sets value_flags and switches, and a variable of the same name with the default of each.
# shellcheck shell=bash disable=SC2034,SC2154
set -euo pipefail
dry_run=""
command=""
rest=() # what follows --

say() { echo "$(basename "$0"): $*" >&2; }

die() {
  echo "error: $*" >&2
  exit 2
}

# The comment at the top of a script is its help.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

is_in() { # WORD "LIST"
  case " $2 " in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

parse_flags() {
  local flag
  while [ $# -gt 0 ]; do
    flag="${1%%=*}"
    flag="$(echo "${flag#--}" | tr - _)"
    case "$1" in
      --) shift; rest=("$@"); return ;;
      --help | -h) usage; exit 0 ;;
      --*=*)
        is_in "$flag" "$switches dry_run" && die "${1%%=*} takes no value: write it without =${1#*=}"
        is_in "$flag" "$value_flags" || die "${1%%=*} is not a flag of this script: bash $0 --help lists them"
        [ -n "${1#*=}" ] || die "${1%%=*} has no value: write ${1%%=*}=VALUE"
        printf -v "$flag" %s "${1#*=}" ;;
      --*)
        is_in "$flag" "$value_flags" && die "$1 has no value: write $1=VALUE, with an equals sign"
        is_in "$flag" "$switches dry_run" || die "$1 is not a flag of this script: bash $0 --help lists them"
        printf -v "$flag" %s 1 ;;
      *) die "'$1' is not a flag: flags begin with --, and arguments of the training command come after a lone --" ;;
    esac
    shift
  done
}

parse_command() { # "COMMANDS" "$@": the first argument is one of the commands, the others are its flags
  local commands="$1"
  shift
  case "${1:-}" in --help | -h) usage; exit 0 ;; esac
  [ $# -gt 0 ] || die "no command: give one of $commands, or --help"
  is_in "$1" "$commands" || die "'$1' is not a command of this script: give one of $commands, or --help"
  command="$1"
  shift
  parse_flags "$@"
}

require() { # FLAG...
  local flag
  for flag in "$@"; do
    [ -n "${!flag}" ] || die "--$flag is missing${command:+ for $command}: add --$flag=VALUE (bash $0 --help explains it)"
  done
}

require_number() { # FLAG...
  local flag
  for flag in "$@"; do
    case "${!flag}" in *[!0-9]* | "") die "--$flag=${!flag} is not a whole number: give one like --$flag=5" ;; esac
  done
}

require_tool() { # TOOL HOW_TO_GET_IT; a dry run needs none
  [ -n "$dry_run" ] || [ -n "$(command -v "$1")" ] || die "$1 is not installed or not on the PATH: $2"
}

require_bucket() { # FLAG: what must outlive the machines
  case "${!1}" in gs://?*/?*) ;; *) die "--$1=${!1} would be lost with the machines: give a bucket, gs://BUCKET/PATH" ;; esac
}

enter_project() { # paths of the training command are relative to the project
  [ -z "$dry_run" ] || quote cd "$(dirname "${BASH_SOURCE[0]}")/.."
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
}

# The arguments as one line that can be pasted into a shell.
quote() {
  local word line=""
  for word in "$@"; do
    case "$word" in
      *[!A-Za-z0-9_@%+=:,./-]* | "") word="'$(printf %s "$word" | sed "s/'/'\\\\''/g")'" ;;
    esac
    line="$line${line:+ }$word"
  done
  echo "$line"
}

run() { if [ -n "$dry_run" ]; then quote "$@"; else "$@"; fi; }

# Packs the files that git tracks, as they are now: no .git, no environments, runs or data, and nothing by accident.
pack() { # FILE
  require_tool git "only tracked files are copied to other machines, so the project must be a git checkout"
  [ -n "$dry_run" ] || git rev-parse --git-dir > /dev/null 2>&1 ||
    die "$PWD is not a git checkout: only tracked files are copied to other machines, so clone the project, or git init and git add"
  [ -n "$dry_run" ] || [ -z "$(git ls-files --deleted)" ] ||
    die "$(git ls-files --deleted | head -n 1) is tracked by git but missing: git checkout or git rm it"
  run mkdir -p "$(dirname "$1")" || return
  if [ -n "$dry_run" ]; then
    echo "git ls-files -z | tar --null -czf $(quote "$1") -T -"
  else
    git ls-files -z | COPYFILE_DISABLE=1 tar --null -czf "$1" -T - # that variable: no ._ files from macOS
  fi
}

require_tracked_config() {
  [ -n "$dry_run" ] || git ls-files --error-unmatch -- "${config%%:*}" > /dev/null 2>&1 ||
    die "--config=$config is not a file that git tracks, and only those are copied: name one of configs/, or git add yours"
}

# Sets runtime_version, the image of a TPU VM, unless it is given.
set_runtime_version() {
  [ -z "$runtime_version" ] || return 0
  case "$accelerator_type" in
    v6e-[1-9]*) runtime_version=v2-alpha-tpuv6e ;;
    v5p-[1-9]*) runtime_version=v2-alpha-tpuv5 ;;
    v5litepod-[1-9]*) runtime_version=v2-alpha-tpuv5-lite ;;
    v[234]-[1-9]*) runtime_version=tpu-ubuntu2204-base ;;
    *) die "--accelerator_type=$accelerator_type is not v5litepod-N, v6e-N, v5p-N, v4-N, v3-N or v2-N: correct it, or add" \
      "--runtime_version=VERSION (TPU7x and later have no TPU VMs of this kind: use launch/gke_xpk.sh)" ;;
  esac
}

# Sets the array train: the training command with the flags of this script and what came after --.
set_train() { # PYTHON
  require config workdir
  train=("$1" -m pc2seg_jax.train "--config=$config" "--workdir=$workdir" ${rest[@]+"${rest[@]}"})
}
