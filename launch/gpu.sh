#!/usr/bin/env bash
# Trains on the NVIDIA GPUs of this machine. One process drives all of them: each minibatch is divided among them, and
# batch norm and loss are computed over all of it.
#
#   bash launch/gpu.sh [SETTING …] [FLAG …]         other flags go to the training binary: --config.seed=1
#
# Settings, as flags or as variables of the environment:
#   --data=DIR       DATA      the dataset's directory                     (data at the root of the repository)
#   --run=DIR        RUN       the work directory                          (runs/<name of the config's file> there)
#   --config=FILE    CONFIG    the experiment                              (configs/simclr.py)
#   --gpus=0,2       GPUS      only these GPUs, numbered as by nvidia-smi (all that CUDA_VISIBLE_DEVICES leaves)
#   --memory=0.9     MEMORY    share of each GPU's memory to reserve       (0.9)
#   --deterministic  DETERMINISTIC=1  deterministic kernels: a resumed run equals an uninterrupted one, bit for bit;
#                              slower
#   --restarts=N     RESTARTS  how often training is restarted from its newest checkpoint after a signal ended it,
#                              such as SIGKILL when out of memory                              (3)
#   --log=FILE       LOG       what training prints, in addition to the console (gpu.log in the work directory)
#   --dry-run                  prints the command, quoted for a shell, without running it
#                    EXTRAS    extras to install: cuda, for drivers from 525 on                 (cuda)
#                    PYTHON    the Python to make .venv with, 3.11 or newer
# XLA_FLAGS, XLA_CLIENT_MEM_FRACTION and JAX_PLATFORMS are kept if they are set.
#
# The same command resumes stopped training. SIGTERM, SIGHUP and Ctrl-C are forwarded: training saves a checkpoint
# first. For several machines without Slurm: pass --distributed=true and a shared RUN, and set on each
# JAX_COORDINATOR_ADDRESS=<first machine>:1234, JAX_NUM_PROCESSES=<machines> and JAX_PROCESS_ID=0, 1, ….
#
# Exit status: 0 done, 2 wrong usage, 143 ended by one of these signals, otherwise that of training, or 1.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

OLDEST_DRIVER=525 # that CUDA 12 runs with
FLAGS=()          # what goes to the training binary
DRY_RUN=0
CHILD=""          # the training
SIGNALS=0         # number of signals received

parse() {
  local argument
  for argument in "$@"; do
    case $argument in
      --data=* | --config.data_dir=*) DATA=${argument#*=} ;;
      --run=* | --workdir=*) RUN=${argument#*=} ;;
      --config=*) CONFIG=${argument#*=} ;;
      --gpus=*) GPUS=${argument#*=} ;;
      --memory=*) MEMORY=${argument#*=} ;;
      --deterministic) DETERMINISTIC=1 ;;
      --restarts=*) RESTARTS=${argument#*=} ;;
      --log=*) LOG=${argument#*=} ;;
      --dry-run) DRY_RUN=1 ;;
      --?*) FLAGS+=("$argument") ;;
      *) fail "unexpected argument '$argument': settings and flags are written --name=value (--help explains)" 2 ;;
    esac
  done
}

# matches VALUE EXPRESSION NAME EXAMPLE: ends the script if a setting does not match the expression.
matches() {
  [[ $1 =~ ^$2$ ]] || fail "$3 is '$1'; expected for example $4 (--help explains)" 2
}

# check: completes the settings. Paths are relative to the caller's directory; the config may be the repository's.
check() {
  CONFIG=${CONFIG:-configs/simclr.py} GPUS=${GPUS:-} RESTARTS=${RESTARTS:-3} DETERMINISTIC=${DETERMINISTIC:-0}
  if [ -f "${CONFIG%%:*}" ]; then CONFIG=$(absolute "$CONFIG"); fi
  DATA=$(absolute "${DATA:-$CELLCLR_ROOT/data}")
  RUN=$(absolute "${RUN:-$CELLCLR_ROOT/runs/$(basename "${CONFIG%%:*}" .py)}")
  case $RUN in *://*) LOG=${LOG:-$CELLCLR_ROOT/runs/gpu.log} ;; esac
  LOG=$(absolute "${LOG:-$RUN/gpu.log}")
  matches "${MEMORY:-0.9}" '0?\.[0-9]*[1-9][0-9]*|1(\.0*)?' memory 0.9
  matches "$RESTARTS" '[0-9]+' restarts 3
  if [ -n "$GPUS" ]; then matches "$GPUS" '[0-9]+(,[0-9]+)*' gpus 0,1; fi
  cd "$CELLCLR_ROOT"
  check_config "$CONFIG"
}

# settings: sets the environment variables of JAX and CUDA.
settings() {
  # Numbers as nvidia-smi has them; CUDA's own order begins with the fastest.
  export CUDA_DEVICE_ORDER=PCI_BUS_ID
  if [ -n "$GPUS" ]; then export CUDA_VISIBLE_DEVICES=$GPUS; fi
  if [ -n "${MEMORY:-}" ]; then
    unset XLA_PYTHON_CLIENT_MEM_FRACTION # the old name; both at once are refused
    export XLA_CLIENT_MEM_FRACTION=$MEMORY
  fi
  if [ "$DETERMINISTIC" = 1 ]; then export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_gpu_deterministic_ops=true"; fi
  gpu_settings
}

# check_driver: reports a missing or old driver before anything is installed.
check_driver() {
  local version
  command -v nvidia-smi >/dev/null || fail "nvidia-smi is not on the PATH: this machine has no NVIDIA driver"
  version=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader) ||
    fail "nvidia-smi fails: is the driver loaded? (its message is above)"
  version=${version%%$'\n'*}
  [ "${version%%.*}" -ge "$OLDEST_DRIVER" ] 2>/dev/null ||
    fail "the NVIDIA driver is ${version:-unknown}: JAX needs $OLDEST_DRIVER or newer"
}

# check_gpus: checks that JAX sees GPUs, and as many as were named.
check_gpus() {
  local found named
  found=$(XLA_PYTHON_CLIENT_PREALLOCATE=false "$CELLCLR_PYTHON" -c 'import jax
gpus = jax.local_devices()
print(len(gpus), gpus[0].device_kind)') || fail "JAX finds no GPU (its message is above)"
  echo "      $found"
  if [ -n "$GPUS" ]; then
    named=${GPUS//[!,]/}
    [ "${found%% *}" -eq $((${#named} + 1)) ] || fail "of the GPUs $GPUS JAX sees ${found%% *}: nvidia-smi lists them" 2
  fi
}

# train: starts the training once; prints to the console and to the log. tee ignores signals and ends with the training,
# so that a signal to all processes does not close the pipe of training that is saving.
train() {
  local status=0 before=-1
  CHILD=""
  trap 'SIGNALS=$((SIGNALS + 1)) && kill -TERM $CHILD 2>/dev/null || true' TERM HUP INT
  "$CELLCLR_PYTHON" -m cellclr_jax.main "--config=$CONFIG" "--workdir=$RUN" "--config.data_dir=$DATA" \
    ${FLAGS[@]+"${FLAGS[@]}"} > >(trap '' INT TERM HUP && exec tee -a "$LOG") 2>&1 &
  CHILD=$!
  # A signal may arrive before the process ID is known.
  [ "$SIGNALS" = 0 ] || kill -TERM "$CHILD" 2>/dev/null || true
  # A signal interrupts `wait`, not the training.
  while [ "$before" -ne "$SIGNALS" ]; do
    before=$SIGNALS status=0
    wait "$CHILD" || status=$?
  done
  return "$status"
}

# train_with_restarts: trains to the end; restarts the training after a signal to it.
train_with_restarts() {
  local start=0 status
  while true; do
    status=0
    train || status=$?
    if [ "$status" -eq 0 ]; then return; fi
    if [ "$SIGNALS" -gt 0 ] || [ "$status" -eq 143 ]; then
      fail "stopped; the same command resumes" 143
    fi
    if [ "$status" -le 128 ] || [ "$start" -ge "$RESTARTS" ]; then
      fail "training failed with status $status; the log is $LOG" "$status"
    fi
    start=$((start + 1))
    echo "training was ended by signal $((status - 128)): restart $start of $RESTARTS" >&2
  done
}

dry_run() {
  local environment
  environment=$(active_environment)
  quoted env "CUDA_DEVICE_ORDER=$CUDA_DEVICE_ORDER" \
    ${CUDA_VISIBLE_DEVICES:+"CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"} "JAX_PLATFORMS=$JAX_PLATFORMS" \
    ${XLA_CLIENT_MEM_FRACTION:+"XLA_CLIENT_MEM_FRACTION=$XLA_CLIENT_MEM_FRACTION"} "XLA_FLAGS=$XLA_FLAGS" \
    "${environment:-$CELLCLR_ROOT/.venv}/bin/python" -m cellclr_jax.main "--config=$CONFIG" "--workdir=$RUN" "--config.data_dir=$DATA" \
    ${FLAGS[@]+"${FLAGS[@]}"}
}

main() {
  case ${1:-} in -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;; esac
  parse "$@"
  check
  settings
  if [ "$DRY_RUN" -eq 1 ]; then
    dry_run
    return
  fi
  check_driver
  step 1 3 "environment"
  environment_ready "${EXTRAS-cuda}"
  step 2 3 "GPUs"
  check_gpus
  step 3 3 "train in $RUN"
  mkdir -p "$(dirname "$LOG")"
  train_with_restarts
  echo "done in $SECONDS s"
}

main "$@"
