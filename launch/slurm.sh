#!/usr/bin/env bash
# Trains on a Slurm cluster, on the GPUs of one node or several. From the root of the repository, on a file system that
# all nodes see:
#
#   DATA=/shared/data sbatch launch/slurm.sh                                        one node, one GPU
#   DATA=/shared/data sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh            four nodes, 32 GPUs
#   DATA=… sbatch --partition=gpu --time=8:00:00 launch/slurm.sh --config.seed=1    flags go to the training binary
#
# Options of sbatch override those below. One task a node drives all its GPUs; with --ntasks-per-node=8 each task drives
# one. Settings, from the environment:
#   DATA     the dataset's directory, seen by all nodes   (required)
#   RUN      the work directory, seen by all nodes        (runs/slurm-<job name>)
#   CONFIG   the experiment                               (configs/simclr.py)
#   EXTRAS   extras to install                            (cuda)
#   PYTHON   the Python to make .venv with, 3.11 or newer
#
# Two minutes before the time limit, and when the job is preempted with a grace time, the tasks get SIGTERM: training
# saves a checkpoint and ends, the job goes back into the queue under the same number and resumes from there. A job that
# is cancelled, that fails or that is done is not requeued. The log is <job name>-<job number>.log.
#
# Exit status: 2 wrong usage, otherwise that of training, or 1; 0, too, when the job was put back into the queue.
#
#SBATCH --job-name=cellclr
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# Slurm runs a copy of this file from its spool directory, so the repository's path comes from the job.
ROOT=${CELLCLR_ROOT:-${SLURM_SUBMIT_DIR:-}}

# visible_gpus: prints how many GPUs this task sees.
visible_gpus() {
  local ids
  if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    IFS=, read -r -a ids <<<"$CUDA_VISIBLE_DEVICES"
    echo "${#ids[@]}"
  else
    echo "${SLURM_GPUS_ON_NODE:-0}"
  fi
}

# choose_gpus: on Slurm JAX takes one GPU a task, the one with the task's own number among those visible. That is wrong
# for a task that drives a whole node, and for a task to which Slurm shows only its own GPU, as number 0.
choose_gpus() {
  local gpus tasks ids
  gpus=$(visible_gpus)
  tasks=${SLURM_STEP_TASKS_PER_NODE:-1}
  tasks=${tasks%%[!0-9]*}
  if [ -n "${JAX_LOCAL_DEVICE_IDS:-}" ] || [ "$gpus" -eq 0 ]; then return; fi
  if [ "$tasks" -gt 1 ] && [ "$gpus" -gt 1 ]; then return; fi
  ids=$(seq -s, 0 $((gpus - 1)))
  export JAX_LOCAL_DEVICE_IDS=$ids
}

# run_task FLAG…: runs one process of the training; a marker file records why it ended. Slurm signals
# every process of the task, so nothing is forwarded; bash runs the trap when the training process has ended.
run_task() {
  local status=0 preempted=0
  trap 'preempted=1' TERM
  choose_gpus
  "$CELLCLR_PYTHON" -m cellclr_jax.main "$@" || status=$?
  if [ "$preempted" -eq 1 ] || [ "$status" -eq $((128 + 15)) ]; then
    touch "$MARKER.preempted"
    # The other tasks may still be saving: a bad status would make srun kill them.
    exit 0
  fi
  # srun ends the other tasks with SIGTERM when one fails: this marker takes precedence over theirs.
  if [ "$status" -ne 0 ]; then touch "$MARKER.failed"; fi
  exit "$status"
}

# requeue: puts the job back into the queue, unless it was cancelled.
requeue() {
  if scontrol show job "$SLURM_JOB_ID" | grep -q 'JobState=RUNNING'; then
    echo "ended by SIGTERM: requeue job $SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "ended by SIGTERM: job $SLURM_JOB_ID is no longer running, not requeued"
  fi
}

# run_job FLAG…: the batch script, which runs on the first node.
run_job() {
  local status=0 cpus=${SLURM_CPUS_PER_TASK:-}
  [ -n "${DATA:-}" ] || fail "set DATA to the dataset's directory: DATA=/shared/data sbatch launch/slurm.sh" 2
  check_config "${CONFIG:-configs/simclr.py}"
  mkdir -p "$(dirname "$MARKER")"
  rm -f "$MARKER.preempted" "$MARKER.failed"
  step 1 2 "environment"
  environment_ready "${EXTRAS-cuda}"
  case ${EXTRAS-cuda} in *cuda*) gpu_settings ;; esac
  step 2 2 "train on ${SLURM_JOB_NUM_NODES:-1} node(s), start ${SLURM_RESTART_COUNT:-0}"
  trap 'touch "$MARKER.preempted"' TERM
  # Since Slurm 22.05 srun does not inherit --cpus-per-task.
  srun --kill-on-bad-exit=1 ${cpus:+"--cpus-per-task=$cpus"} bash "$ROOT/launch/slurm.sh" task \
    --distributed=true --config="${CONFIG:-configs/simclr.py}" \
    --workdir="${RUN:-$ROOT/runs/slurm-${SLURM_JOB_NAME:-cellclr}}" --config.data_dir="$DATA" "$@" || status=$?
  if [ -e "$MARKER.preempted" ] && [ ! -e "$MARKER.failed" ]; then
    requeue
  elif [ "$status" -ne 0 ]; then
    fail "training failed with status $status" "$status"
  fi
}

if [ -z "${SLURM_JOB_ID:-}" ]; then
  case ${1:-} in -h | --help)
    # As `usage` of environment.sh, without the options of sbatch; that file is not found here on Slurm.
    awk 'NR > 1 { if (!/^#/) exit; if (!/^#SBATCH/) { sub(/^# ?/, ""); print } }' "$0"
    exit 0
    ;;
  esac
  echo "error: slurm.sh is a batch script: DATA=DIR sbatch launch/slurm.sh" >&2
  exit 2
fi
if [ ! -f "$ROOT/launch/environment.sh" ]; then
  echo "error: no launch/environment.sh in '$ROOT': submit from the root of the repository, or set CELLCLR_ROOT" >&2
  exit 2
fi
cd "$ROOT"
MARKER="$ROOT/runs/slurm-jobs/$SLURM_JOB_ID"
if [ "${1:-}" = task ]; then
  shift
  run_task "$@"
fi
# shellcheck source=launch/environment.sh
source "$ROOT/launch/environment.sh"
run_job "$@"
