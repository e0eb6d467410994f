#!/usr/bin/env bash
# Installs the package and runs all checks: linter, formatter, types, shell scripts, tests.
#
#   bash launch/test.sh [ARGUMENT …]        arguments go to pytest: -k losses, tests/launch
#
# Settings, from the environment:
#   PYTHON   the Python to make .venv with, 3.11 or newer
#
# Stops at the first failed stage, prints its name and exits with 1. A second call skips the installation.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

STAGES=6

# stage NUMBER NAME COMMAND…: announces and runs a stage; a failure ends the script.
stage() {
  local number=$1 name=$2
  shift 2
  step "$number" "$STAGES" "$name"
  "$@" || fail "stage $number ($name) failed after $SECONDS s"
}

main() {
  if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    usage "${BASH_SOURCE[0]}"
    exit 0
  fi
  step 1 "$STAGES" "environment"
  environment_ready test
  cd "$CELLCLR_ROOT"
  stage 2 "ruff check" "$CELLCLR_PYTHON" -m ruff check .
  stage 3 "ruff format" "$CELLCLR_PYTHON" -m ruff format --check .
  stage 4 "mypy" "$CELLCLR_PYTHON" -m mypy
  stage 5 "shellcheck" shellcheck -x launch/*.sh
  stage 6 "pytest" "$CELLCLR_PYTHON" -m pytest "$@"
  echo "all $STAGES stages passed in $SECONDS s"
}

main "$@"
