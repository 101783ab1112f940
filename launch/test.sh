#!/usr/bin/env bash
# Style and the whole test suite: bash launch/test.sh [pytest arguments]
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
"$python" -m ruff check .
"$python" -m ruff format --check .
# Three processes for two cores, as some tests wait; each with whole files: fixtures that compile are shared within a file.
# The order is that of conftest.py.
"$python" -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder "$@"
