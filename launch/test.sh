#!/usr/bin/env bash
# Style and the whole test suite: bash launch/test.sh [pytest arguments]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m pytest "$@"
