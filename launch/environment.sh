#!/usr/bin/env bash
# The Python environment of the launch scripts. Sourced, never run:
#
#   source launch/environment.sh
#   environment_ready test        # '' for the package without extras, else extras of setup.py: test, cuda, 'cuda,test'
#   "$CELLCLR_PYTHON" -m cellclr_jax.main …
#
# Uses the active virtual environment (VIRTUAL_ENV, or CONDA_PREFIX other than conda's base), otherwise creates and keeps
# `.venv` at the root of the repository with the first of $PYTHON, python3.12, python3.11, python3.13, python3, python
# that is Python 3.11 or newer and can make environments. A stamp in the environment, the hash of setup.py, skips the
# installation the next time. Needs only the network of the package index that pip is set up for.
#
# Exit status 2: no suitable Python. 1: the installation failed.

set -euo pipefail

CELLCLR_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CELLCLR_PYTHON=""
export CELLCLR_ROOT CELLCLR_PYTHON

# fail MESSAGE [STATUS]: prints the message in one line and ends the script.
fail() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-1}"
}

# step NUMBER OF TEXT: announces a step with the seconds since the script began.
step() {
  printf '[%s/%s] %s (%s s)\n' "$1" "$2" "$3" "$SECONDS"
}

# usage FILE: prints the comment at the head of a script.
usage() {
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$1"
}

# quoted WORD…: prints the words quoted for a shell; works in bash 3.2 (macOS).
quoted() {
  local word separator=""
  for word in "$@"; do
    case $word in
      "" | *[!A-Za-z0-9_./:=@,+-]*) printf "%s'%s'" "$separator" "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")" ;;
      *) printf '%s%s' "$separator" "$word" ;;
    esac
    separator=" "
  done
  echo
}

# check_config FILE: ends the script if the experiment does not exist; FILE may have an argument, as in FILE:ARGUMENT.
check_config() {
  [ -f "${1%%:*}" ] || fail "no experiment ${1%%:*} (--config): there are $(cd "$CELLCLR_ROOT" && echo configs/*.py)" 2
}

# gpu_settings: sets the variables that JAX reads on GPUs, unless they are set already.
gpu_settings() {
  local overlap=--xla_gpu_enable_latency_hiding_scheduler
  # Without it JAX silently trains on the CPU if it finds no GPU.
  export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}
  # JAX takes three quarters by default. The rest is for cuDNN, NCCL and the driver.
  if [ -z "${XLA_PYTHON_CLIENT_MEM_FRACTION:-}" ]; then
    export XLA_CLIENT_MEM_FRACTION=${XLA_CLIENT_MEM_FRACTION:-0.9}
  fi
  # Gradients travel between GPUs while others are still being computed.
  case ${XLA_FLAGS:-} in *"$overlap="*) ;; *) export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }$overlap=true" ;; esac
}

# absolute PATH: prints a path of the caller's directory as an absolute one; URLs such as gs://… stay as they are.
absolute() {
  case $1 in
    /* | *://*) printf '%s\n' "$1" ;;
    *) printf '%s\n' "$PWD/${1#./}" ;;
  esac
}

# python_version COMMAND: prints 3.12.1; fails if the command does not run, e.g. pyenv's shim of an unselected version.
python_version() {
  "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null
}

# new_enough VERSION
new_enough() {
  local major minor
  IFS=. read -r major minor _ <<<"$1"
  [ "$major" -gt 3 ] || { [ "$major" -eq 3 ] && [ "$minor" -ge 11 ]; }
}

# find_python: prints the first command that is new enough and can make environments; explains and exits otherwise.
find_python() {
  local candidate version found="" candidates=(python3.12 python3.11 python3.13 python3 python)
  # A chosen Python is used or refused, never silently replaced.
  if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    version=$(python_version "$candidate") || continue
    if ! new_enough "$version"; then
      found="$found${found:+, }$candidate is $version"
    elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      found="$found${found:+, }$candidate is $version without venv (apt install python${version%.*}-venv)"
    else
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "CellCLR needs Python 3.11 or newer; found: ${found:-none that runs} (looked for: ${candidates[*]}). \
Install Python 3.12, or name one: PYTHON=/path/to/python3.12 bash $0" 2
}

# environment_works DIR: whether its Python runs, is new enough and has pip; fails for an incomplete environment.
environment_works() {
  local version
  version=$(python_version "$1/bin/python") || return 1
  new_enough "$version" && "$1/bin/python" -c 'import pip' 2>/dev/null
}

# active_environment: prints the directory of the environment the caller has activated, if any.
active_environment() {
  if [ -n "${VIRTUAL_ENV:-}" ]; then
    printf '%s\n' "$VIRTUAL_ENV"
  elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; then
    # conda's base is often active by default, and belongs to conda
    printf '%s\n' "$CONDA_PREFIX"
  fi
}

# use_active DIR: uses the active environment, or reports why it cannot be used.
use_active() {
  local version
  version=$(python_version "$1/bin/python") ||
    fail "the active environment $1 has no Python that runs: deactivate it" 2
  new_enough "$version" ||
    fail "CellCLR needs Python 3.11 or newer; the active environment $1 has $version: deactivate it" 2
  "$1/bin/python" -c 'import pip' 2>/dev/null ||
    fail "the active environment $1 has no pip: run python -m ensurepip, or deactivate it" 2
}

# make_environment DIR: makes .venv, and replaces a broken one.
make_environment() {
  local python
  python=$(find_python)
  if [ -e "$1" ]; then
    echo "      $1 is broken or older than Python 3.11: making it again"
    rm -rf "$1"
  fi
  echo "      making $1 with $python ($(python_version "$python"))"
  "$python" -m venv "$1" || fail "$python -m venv $1 failed"
}

# setup_hash: prints a hash of what an installation depends on: setup.py and the path of the repository.
setup_hash() {
  "$CELLCLR_PYTHON" -c 'import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read() + sys.argv[1].encode()).hexdigest())' "$CELLCLR_ROOT/setup.py"
}

# installed DIR HASH EXTRAS: whether a stamp exists; without extras any stamp suffices, since all include the package.
installed() {
  local stamp
  for stamp in "$1/.cellclr-installed${3:+-$3}" "$1/.cellclr-installed-"*; do
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$2" ]; then return 0; fi
    [ -z "$3" ] || return 1
  done
  return 1
}

# install DIR HASH EXTRAS: installs the package, editable, with its extras; writes the stamp last. Python compiles each
# module at its first import: compiling all of every package takes half of pip's time.
install() {
  local stamp="$1/.cellclr-installed${3:+-$3}"
  rm -f "$stamp"
  echo "      installing cellclr_jax${3:+[$3]} into $1 (minutes the first time)"
  (cd "$CELLCLR_ROOT" && "$CELLCLR_PYTHON" -m pip install --quiet --disable-pip-version-check --no-compile -e ".${3:+[$3]}") ||
    fail "the installation failed: pip install -e '.${3:+[$3]}' (its message is above)"
  printf '%s\n' "$2" >"$stamp"
}

# environment_ready [EXTRAS]: afterwards $CELLCLR_PYTHON has the package, and the environment's tools are on the PATH.
environment_ready() {
  local extras=${1:-} directory hash
  directory=$(active_environment)
  # The repository's own .venv is made again if it is active and broken.
  if [ -n "$directory" ] && { [ "$directory" != "$CELLCLR_ROOT/.venv" ] || environment_works "$directory"; }; then
    use_active "$directory"
  else
    directory="$CELLCLR_ROOT/.venv"
    environment_works "$directory" || make_environment "$directory"
  fi
  CELLCLR_PYTHON="$directory/bin/python"
  PATH="$directory/bin:$PATH"
  hash=$(setup_hash)
  if installed "$directory" "$hash" "$extras"; then
    echo "      $directory has cellclr_jax${extras:+[$extras]}"
  else
    install "$directory" "$hash" "$extras"
  fi
}
