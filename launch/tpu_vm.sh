#!/usr/bin/env bash
# Trains on Cloud TPU VMs: one VM, or a pod slice with a process on each of its workers.
#
#   bash launch/tpu_vm.sh COMMAND [SETTING …] [FLAG …]
#
# Commands:
#   create   creates the TPU VM; with --queued, waits in the queue until one is available
#   setup    copies the last commit to all workers and installs it there with Python 3.12 and libtpu
#   run      starts training on all workers, detached, and follows the log of worker 0; a broken connection does not
#            end the training. Other flags go to the training binary: --config.seed=1
#   follow   follows the log again; exits with 0 when training succeeded, 3 when it failed
#   fetch    copies the work directory to this machine
#   delete   deletes the VM, after a question or with --yes
#   all      create, setup, run, fetch, and delete with --delete, then also when training has failed
#
# Settings, as flags or as variables of the environment:
#   --name=NAME        NAME      the VM's name                       (cellclr)
#   --zone=ZONE        ZONE      e.g. us-west4-a                     (required)
#   --project=PROJECT  PROJECT   the Google Cloud project            (gcloud's own)
#   --type=TYPE        TYPE      accelerator type, e.g. v6e-8, v4-32 (v5litepod-8)
#   --runtime=VERSION  RUNTIME   the VM's software                   (by type)
#   --spot             SPOT=1    a spot VM: cheaper, may be taken away
#   --queued           QUEUED=1  requests the VM as a queued resource of the same name, available now or later;
#                                give it to create, all and delete
#   --bucket=NAME      BUCKET    sets DATA to gs://NAME/data and RUN to gs://NAME/runs/<VM's name>
#   --data=PATH        DATA      dataset: gs://… (each worker copies it to its disk) or a path on the workers,
#                                from the checkout there, ~/cellclr
#   --run=PATH         RUN       work directory: gs://… (needed on a pod slice) or a path on worker 0
#   --config=FILE      CONFIG    the experiment, one of the checkout (configs/simclr.py)
#   --out=DIR          OUT       where fetch puts the work directory (runs)
#   --dry-run                    prints the commands, quoted for a shell, without running them
#   --yes                        delete does not ask
#   --delete                     all deletes the VM at the end
#
# Example, with a dataset uploaded by `gcloud storage rsync --recursive data gs://cells/data`:
#   bash launch/tpu_vm.sh all --zone=us-west4-a --type=v5litepod-16 --bucket=cells --spot --delete
#
# Exit status: 2 wrong usage, 3 training failed, 4 connection lost, otherwise that of the command that failed, or 1.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" # fail, usage, CELLCLR_ROOT

REMOTE=cellclr                  # the checkout on the workers, below the home directory
TRAINING_FAILED=3               # not 1 or 255, which gcloud and ssh use for a broken connection
CONNECTION_LOST=4               # after all retries: the training may still be running
RETRIES=${RETRIES:-40}          # number of attempts to reconnect; RETRY_SECONDS between them
RETRY_SECONDS=${RETRY_SECONDS:-15}
QUEUE_SECONDS=${QUEUE_SECONDS:-30}
FLAGS=()                        # what goes to the training binary
DRY_RUN=${DRY_RUN:-0} YES=${YES:-0} DELETE=${DELETE:-0} QUEUED=${QUEUED:-0}

# call COMMAND WORD…: shows a command and runs it unless --dry-run; names it when it fails.
call() {
  local status=0
  if [ "$DRY_RUN" = 1 ]; then
    quoted "$@"
    return
  fi
  echo "+ $(quoted "$@")" >&2
  "$@" || status=$?
  [ "$status" -eq 0 ] || fail "exit status $status from: $(quoted "$@")" "$status"
}

# tpu VERB WORD…: a command on the TPU VM.
tpu() {
  call gcloud compute tpus tpu-vm "$@" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"}
}

# queue VERB WORD…: a command on the queued resource.
queue() {
  call gcloud compute tpus queued-resources "$@" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"}
}

# on_workers WORKERS COMMAND WORD…: this script on the workers (all, or a number), as `tpu_vm.sh COMMAND WORD…`.
on_workers() {
  local workers=$1
  shift
  tpu ssh "$NAME" "--worker=$workers" "--command=$(quoted bash "$REMOTE/launch/tpu_vm.sh" "$@")"
}

default_runtime() {
  case $TYPE in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create() {
  local spot="" runtime=${RUNTIME:-$(default_runtime)}
  [ "$SPOT" != 1 ] || spot=--spot
  if [ "$QUEUED" = 1 ]; then
    queue create "$NAME" "--node-id=$NAME" "--accelerator-type=$TYPE" "--runtime-version=$runtime" ${spot:+"$spot"}
    wait_in_queue
  else
    tpu create "$NAME" "--accelerator-type=$TYPE" "--version=$runtime" ${spot:+"$spot"}
  fi
}

# wait_in_queue: waits until the queued resource has its VM.
wait_in_queue() {
  local state printed="" failures=0 ask=(queue describe "$NAME" "--format=value(state.state)")
  if [ "$DRY_RUN" = 1 ]; then
    "${ask[@]}"
    return
  fi
  while true; do
    state=$("${ask[@]}") && failures=0 || failures=$((failures + 1))
    [ "$failures" -le "$RETRIES" ] || fail "no connection to Google Cloud; $NAME stays in the queue" "$CONNECTION_LOST"
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING)
        fail "the queued resource $NAME is $state: bash $0 delete --queued --name=$NAME --zone=$ZONE"
        ;;
    esac
    [ "$state" = "$printed" ] || echo "$NAME: $state" >&2
    printed=$state
    sleep "$QUEUE_SECONDS"
  done
}

# The archive is unpacked over an earlier one without leaving files of that one behind; .venv stays.
setup() {
  local archive
  git -C "$CELLCLR_ROOT" rev-parse --verify --quiet HEAD >/dev/null ||
    fail "setup copies a commit: $CELLCLR_ROOT is not a git checkout"
  [ -z "$(git -C "$CELLCLR_ROOT" status --porcelain --untracked-files=no)" ] ||
    echo "note: changes that are not committed are not copied" >&2
  archive="$CELLCLR_ROOT/dist/$REMOTE-$NAME.tar.gz"
  call mkdir -p "$CELLCLR_ROOT/dist"
  call git -C "$CELLCLR_ROOT" archive --format=tar.gz "--output=$archive" HEAD
  tpu scp "$archive" "$NAME:$REMOTE.tar.gz" --worker=all
  tpu ssh "$NAME" --worker=all "--command=mkdir -p $REMOTE && cd $REMOTE && \
rm -rf cellclr_jax configs launch && tar -xzf ../$REMOTE.tar.gz"
  on_workers all worker-setup
  call rm -f "$archive"
}

run() {
  case $RUN in gs://*) ;; *) echo "note: on a pod slice RUN must lie in a bucket, so that all workers see it" >&2 ;; esac
  on_workers all worker-run "$DATA" --distributed=true "--config=$CONFIG" "--workdir=$RUN" \
    ${FLAGS[@]+"${FLAGS[@]}"}
  follow
}

# follow: shows the log of worker 0 until training ends; connects again after an interruption.
follow() {
  local status attempt=0
  while true; do
    status=0
    (on_workers 0 worker-follow) || status=$?
    case $status in
      0) return ;;
      "$TRAINING_FAILED") fail "training failed; the log is $REMOTE/train.log on each worker" "$TRAINING_FAILED" ;;
    esac
    attempt=$((attempt + 1))
    [ "$attempt" -le "$RETRIES" ] ||
      fail "no connection to $NAME; training may go on: bash $0 follow --name=$NAME --zone=$ZONE" "$CONNECTION_LOST"
    echo "connection lost, training continues; attempt $attempt of $RETRIES in $RETRY_SECONDS s" >&2
    sleep "$RETRY_SECONDS"
  done
}

fetch() {
  local target source=$RUN
  target="$OUT/$(basename "$RUN")"
  call mkdir -p "$target"
  case $RUN in
    gs://*) call gcloud storage rsync --recursive "$RUN" "$target" ${PROJECT:+"--project=$PROJECT"} ;;
    *)
      case $RUN in /*) ;; *) source="$REMOTE/$RUN" ;; esac
      tpu scp "$NAME:$source" "$OUT" --recurse --worker=0
      ;;
  esac
  echo "the work directory is in $target" >&2
}

delete() {
  local answer=""
  if [ "$YES" != 1 ] && [ "$DRY_RUN" != 1 ]; then
    printf 'Delete the TPU VM %s in %s with all that is on its disk? [y/N] ' "$NAME" "$ZONE" >&2
    read -r answer || true
    case $answer in y | Y | yes) ;; *) fail "$NAME was not deleted, and costs money while it exists" ;; esac
  fi
  # --force deletes the VM with its queued resource.
  if [ "$QUEUED" = 1 ]; then queue delete "$NAME" --force --quiet; else tpu delete "$NAME" --quiet; fi
}

everything() {
  local status=0 queued="" again=(bash "$CELLCLR_ROOT/launch/tpu_vm.sh") # in a separate process, so that its exit can be handled
  export NAME ZONE PROJECT TYPE RUNTIME SPOT QUEUED DATA RUN CONFIG OUT DRY_RUN BUCKET
  trap 'fail "interrupted; $NAME still exists, and costs money" 130' INT
  create # only a VM that this call has made is deleted
  "${again[@]}" setup || status=$?
  [ "$status" -ne 0 ] || "${again[@]}" run ${FLAGS[@]+"${FLAGS[@]}"} || status=$?
  # Also fetches what a failed training has saved.
  case $status in
    0) "${again[@]}" fetch || fail "fetch failed; $NAME still exists with the work directory, and costs money" ;;
    "$CONNECTION_LOST") fail "$NAME was not deleted, as its training may go on, and costs money" "$CONNECTION_LOST" ;;
    "$TRAINING_FAILED") "${again[@]}" fetch || echo "there is no work directory to fetch" >&2 ;;
    *) echo "setup or run ended with status $status" >&2 ;;
  esac
  [ "$QUEUED" != 1 ] || queued=" --queued"
  if [ "$DELETE" = 1 ]; then
    YES=1 delete
  else
    echo "$NAME still exists, and costs money: bash $0 delete --name=$NAME --zone=$ZONE$queued" >&2
  fi
  exit "$status"
}

# worker-setup, on a worker: TPU VMs ship Python 3.10. uv, a wheel from PyPI, installs its own 3.12 without root and
# without apt, which unattended upgrades lock on a new VM.
worker_setup() {
  local python=.venv/bin/python uv="$HOME/.local/bin/uv"
  cd "$CELLCLR_ROOT"
  # The system's pip of Python 3.12 installs only with this flag.
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user --upgrade uv
  [ -x "$python" ] || "$uv" venv --quiet --python=3.12 .venv
  "$uv" pip install --quiet --python="$python" -e '.[tpu]'
  echo "$(hostname): $("$python" --version) is set up"
}

# worker-run DATA FLAG…, on a worker: starts the training once, detached from the connection.
worker_run() {
  local data=$1
  shift
  cd "$CELLCLR_ROOT"
  if [ -f train.pid ] && kill -0 "$(cat train.pid)" 2>/dev/null; then
    fail "$(hostname): training runs already, as process $(cat train.pid)"
  fi
  case $data in
    gs://*)
      mkdir -p data
      # Files of an earlier dataset would be read as part of this one.
      gcloud storage rsync --recursive --delete-unmatched-destination-objects "$data" data
      data="$CELLCLR_ROOT/data"
      ;;
  esac
  rm -f train.status
  nohup bash launch/tpu_vm.sh worker-train "$@" "--config.data_dir=$data" >train.log 2>&1 </dev/null &
  echo $! >train.pid
  echo "$(hostname): training runs as process $!"
}

# worker-train FLAG…, on a worker: trains, and writes the exit status to a file.
worker_train() {
  local status=0
  cd "$CELLCLR_ROOT"
  .venv/bin/python -m cellclr_jax.main "$@" || status=$?
  echo "$status" >train.status
}

# worker-follow, on a worker: shows the log until training ends.
worker_follow() {
  cd "$CELLCLR_ROOT"
  [ -f train.pid ] || fail "training has not been started: bash launch/tpu_vm.sh run" "$TRAINING_FAILED"
  tail -n 20 -F "--pid=$(cat train.pid)" train.log
  [ "$(cat train.status 2>/dev/null)" = 0 ] || exit "$TRAINING_FAILED"
}

# matches VALUE EXPRESSION NAME EXAMPLE: ends the script if a setting does not match the expression.
matches() {
  [[ $1 =~ ^$2$ ]] || fail "$3 is '$1'; expected for example $4 (--help explains)" 2
}

set_defaults() {
  NAME=${NAME:-cellclr} ZONE=${ZONE:-} PROJECT=${PROJECT:-} TYPE=${TYPE:-v5litepod-8} RUNTIME=${RUNTIME:-}
  SPOT=${SPOT:-0} BUCKET=${BUCKET:-} DATA=${DATA:-} RUN=${RUN:-} CONFIG=${CONFIG:-configs/simclr.py} OUT=${OUT:-runs}
}

# parse FLAG…: puts settings into variables, the rest into FLAGS.
parse() {
  local flag
  for flag in "$@"; do
    case $flag in
      --name=*) NAME=${flag#*=} ;;
      --zone=*) ZONE=${flag#*=} ;;
      --project=*) PROJECT=${flag#*=} ;;
      --type=*) TYPE=${flag#*=} ;;
      --runtime=*) RUNTIME=${flag#*=} ;;
      --spot) SPOT=1 ;;
      --queued) QUEUED=1 ;;
      --bucket=*) BUCKET=${flag#*=} ;;
      --data=* | --config.data_dir=*) DATA=${flag#*=} ;;
      --run=* | --workdir=*) RUN=${flag#*=} ;;
      --config=*) CONFIG=${flag#*=} ;;
      --out=*) OUT=${flag#*=} ;;
      --dry-run) DRY_RUN=1 ;;
      --yes) YES=1 ;;
      --delete) DELETE=1 ;;
      --?*) FLAGS+=("$flag") ;;
      *) fail "unexpected argument '$flag': settings and flags are written --name=value" 2 ;;
    esac
  done
}

check() {
  BUCKET=${BUCKET#gs://}
  BUCKET=${BUCKET%/}
  if [ -n "$BUCKET" ]; then
    DATA=${DATA:-gs://$BUCKET/data}
    RUN=${RUN:-gs://$BUCKET/runs/$NAME}
  fi
  RUN=${RUN:-runs/$NAME}
  [ -n "$ZONE" ] || fail "name the zone: --zone=us-west4-a" 2
  matches "$NAME" '[a-z]([-a-z0-9]{0,61}[a-z0-9])?' name cellclr-1
  matches "$ZONE" '[a-z]+-[a-z]+[0-9]+-[a-z][a-z0-9]*' zone us-west4-a
  matches "$TYPE" 'v[0-9]+[a-z]*-[0-9]+' type v5litepod-8
  [ "$DRY_RUN" = 1 ] || command -v gcloud >/dev/null ||
    fail "gcloud is not on the PATH: install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install)"
}

# check_experiment: checks that the workers will have the experiment, before anything costs money.
check_experiment() {
  case $CONFIG in /*) fail "--config=$CONFIG: an experiment of the checkout was expected, such as configs/simclr.py" 2 ;; esac
  (cd "$CELLCLR_ROOT" && check_config "$CONFIG")
  if [ -e "$CELLCLR_ROOT/.git" ]; then
    git -C "$CELLCLR_ROOT" cat-file -e "HEAD:${CONFIG%%:*}" 2>/dev/null ||
      fail "--config=$CONFIG is not committed, and setup copies the last commit" 2
  fi
}

main() {
  local command=${1:-}
  [ $# -eq 0 ] || shift
  case $command in
    -h | --help | help) usage "${BASH_SOURCE[0]}" && exit 0 ;;
    worker-setup | worker-run | worker-train | worker-follow) "${command//-/_}" "$@"; exit ;;
    create | setup | run | follow | fetch | delete) ;;
    all) command=everything ;;
    *) fail "${command:-no command}: name create, setup, run, follow, fetch, delete or all (--help explains)" 2 ;;
  esac
  set_defaults
  parse "$@"
  check
  case $command in
    run | everything)
      [ -n "$DATA" ] || fail "name the dataset: --data=gs://… or --bucket=NAME" 2
      check_experiment
      ;;
    *) [ ${#FLAGS[@]} -eq 0 ] || fail "unknown setting '${FLAGS[0]}' (--help lists them)" 2 ;;
  esac
  "$command"
}

main "$@"
