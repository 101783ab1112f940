# shellcheck shell=bash
# Sourced by the scripts of this folder: goes to the project's root and makes .venv with the pinned packages.
# Needs python3 (3.11 or newer, or another one named in PYTHON) and pip; a second call reuses what is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "error: $python is missing or older than 3.11: install Python 3.11 or newer, or set PYTHON=/path/to/python" >&2
  exit 2
fi
stamp="$(cat requirements.txt constraints.txt | cksum)"
if [ ! -f .venv/requirements.stamp ] || [ "$(cat .venv/requirements.stamp)" != "$stamp" ]; then
  echo "installing the packages of requirements.txt into .venv (about 2 GB, once)"
  "$python" -m venv .venv
  # The exact versions are those of Python 3.11; other versions resolve within the ranges of requirements.txt.
  pins=()  # expanded below so that bash 3, as on a Mac, takes an empty one
  if .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then pins=(-c constraints.txt); fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt ${pins[@]+"${pins[@]}"}
  echo "$stamp" > .venv/requirements.stamp
fi
python=.venv/bin/python
