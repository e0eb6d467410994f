#!/usr/bin/env bash
# Builds a dataset of simulated plates, trains and evaluates, including the installation: minutes on two CPU cores.
#
#   bash launch/demo.sh [FLAG …]            flags go to the training binary: --config.epochs=2
#
# Settings, from the environment:
#   DATA     the dataset's directory, built if missing   (data at the root of the repository)
#   RUN      the work directory                          (runs/demo at the root of the repository)
#   EXTRAS   extras to install, e.g. cuda on a machine with a GPU; without it JAX's CPU wheel
#   PYTHON   the Python to make .venv with, 3.11 or newer
#
# A second call skips finished work: the environment, the dataset, the trained steps. A run with other settings needs
# its own work directory: RUN=runs/short bash launch/demo.sh --config.epochs=2
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# newest_report DIR: prints the path of the newest evaluation's report.
newest_report() {
  local report newest=""
  for report in "$1"/eval/*/report.html; do
    if [ -f "$report" ] && { [ -z "$newest" ] || [ "$report" -nt "$newest" ]; }; then newest=$report; fi
  done
  printf '%s\n' "${newest:-$1/eval}"
}

check_arguments() {
  local argument
  for argument in "$@"; do
    case $argument in
      -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;;
      --workdir | --workdir=*) fail "the work directory is set by RUN: RUN=DIR bash launch/demo.sh" 2 ;;
      --dry-run) fail "the demo has no --dry-run: bash launch/demo.sh --help describes it" 2 ;;
      --config.data_dir | --config.data_dir=*) fail "the dataset is set by DATA: DATA=DIR bash launch/demo.sh" 2 ;;
      --*) ;;
      *) fail "unexpected argument '$argument': flags are written --name=value" 2 ;;
    esac
  done
}

main() {
  local data run
  check_arguments "$@"
  data=$(absolute "${DATA:-$CELLCLR_ROOT/data}")
  run=$(absolute "${RUN:-$CELLCLR_ROOT/runs/demo}")
  step 1 4 "environment"
  environment_ready "${EXTRAS:-}"
  cd "$CELLCLR_ROOT"
  step 2 4 "simulate plates and build the dataset in $data"
  "$CELLCLR_PYTHON" -m cellclr_jax.build --source=simulated --data_dir="$data" || fail "stage 2 (dataset) failed"
  step 3 4 "train in $run"
  "$CELLCLR_PYTHON" -m cellclr_jax.main --config=configs/simclr_demo.py --workdir="$run" \
    --config.data_dir="$data" "$@" || fail "stage 3 (training) failed; for another run: RUN=DIR bash launch/demo.sh …"
  step 4 4 "evaluate"
  "$CELLCLR_PYTHON" -m cellclr_jax.eval --workdir="$run" --standardize=controls || fail "stage 4 (evaluation) failed"
  echo "report: $(newest_report "$run")"
  echo "done in $SECONDS s"
}

main "$@"
