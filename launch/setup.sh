# shellcheck shell=bash
# Sourced by the scripts of this folder: goes to the project's root and makes .venv with the pinned packages.
# Needs python3 (3.11 to 3.13, or another one named in PYTHON) and pip; a second call reuses what is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
  found="$("$python" --version 2>&1)" || found="not found"
  echo "error: expected Python 3.11, 3.12 or 3.13, for which all packages exist, but $python is $found:" \
    "install one of them, or set PYTHON=/path/to/python" >&2
  exit 2
fi
stamp="$(cat requirements.txt constraints.txt | cksum)"
if [ ! -f .venv/requirements.stamp ] || [ "$(cat .venv/requirements.stamp)" != "$stamp" ]; then
  echo "installing the packages of requirements.txt into .venv (about 2 GB, once)"
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
  echo "$stamp" > .venv/requirements.stamp
fi
python=.venv/bin/python
