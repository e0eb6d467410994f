#!/usr/bin/env bash
# Reproduces the paper's tables on BBBC021, from the download to one row per run: encoders, augmentations and pairs of them,
# temperature, minibatch, DMSO share, projection, corrections, and each quirk of the published code.
#
#   bash launch/reproduce_paper.sh [SETTING …]      the real data (42 GB) and ImageNet weights; needs an accelerator
#   bash launch/reproduce_paper.sh --small          a check of all steps on simulated plates, with meaningless scores;
#                                                   two CPU cores suffice
#
# Settings, as flags or as variables of the environment:
#   --data=DIR       DATA     the dataset's directory, built if missing   (data, with --small data/small, at the root)
#   --out=DIR        OUT      runs and tables                             (runs/paper, with --small runs/paper_small)
#   --tables=A,B     TABLES   tables of paper_tables.tsv: "DMSO share,encoders"  (all)
#   --seeds=0,1,2    SEEDS    trains each run with each of these          (0)
#   --dry-run                 prints the commands without running them
#   --list                    prints the names of the tables with their rows
#                    EXTRAS   extras to install: cuda, cuda13 or tpu; by default JAX's CPU wheel
#                    PYTHON   the Python to make .venv with, 3.11 or newer
#
# launch/paper_tables.tsv lists the rows. The same command resumes where it was stopped: existing dataset, weights,
# trained steps and scores are kept. A failed run is reported, and the others continue. SIGTERM, SIGHUP and Ctrl-C are
# forwarded: training saves a checkpoint first. OUT/tables.md, tables.csv and augmentations.png are updated after each
# row and include rows of earlier calls.
#
# Exit status: 0 all rows are complete, 1 something failed, 2 wrong usage, 129, 130 or 143 stopped by a signal.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ROWS="$CELLCLR_ROOT/launch/paper_tables.tsv"
CONFIG=configs/simclr_paper.py:resnet50 # of the base run
# Files of torchvision's weights; each name ends with the beginning of the file's SHA-256.
WEIGHTS_URL=https://download.pytorch.org/models
WEIGHTS="resnet18-f37072fd resnet50-0676ba61 resnet101-63fe2227"
SMALL=0
DRY_RUN=0
PRINTED="" # commands printed by a dry run, to print each only once
TRAINING=() # flags of every training
SCORING=()  # flags of every evaluation
FAILED=()
LIST=0
CHILD=""   # process of the running command; "starting" until it is known
RECIPE=""  # checksum of the files that decide a row's config
SIGNALLED=0 # 128 and the number of the signal that ended this script's work

parse() {
  local argument
  for argument in "$@"; do
    case $argument in
      -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;;
      --small) SMALL=1 ;;
      --dry-run) DRY_RUN=1 ;;
      --list) LIST=1 ;;
      --data=*) DATA=${argument#*=} ;;
      --out=*) OUT=${argument#*=} ;;
      --tables=*) TABLES=${argument#*=} ;;
      --seeds=*) SEEDS=${argument#*=} ;;
      *) fail "unexpected argument '$argument' (--help explains)" 2 ;;
    esac
  done
}

# rows: prints the lines of paper_tables.tsv of the chosen tables.
rows() {
  awk -F '\t' -v chosen="${TABLES:-}" '
    BEGIN { count = split(chosen, names, ","); for (i = 1; i <= count; i++) selected[names[i]] = 1 }
    /^#/ || NF == 0 { next }
    !count || ($1 in selected) { print }' "$ROWS"
}

check_settings() {
  local name
  IFS=, read -r -a names <<<"${TABLES:-}"
  for name in ${names[@]+"${names[@]}"}; do
    awk -F '\t' -v name="$name" '$1 == name { found = 1 } END { exit !found }' "$ROWS" ||
      fail "no table '$name': there are $(awk -F '\t' '!/^#/ && NF && !seen[$1]++ { printf "%s%s", s, $1; s = ", " }' "$ROWS")" 2
  done
  [[ ${SEEDS:-0} =~ ^(0|[1-9][0-9]*)(,(0|[1-9][0-9]*))*$ ]] || fail "SEEDS is '$SEEDS'; expected for example 0,1,2" 2
}

# check_rows: checks that each row has all columns, each run one training and each folder of scores one evaluation.
check_rows() {
  local problem
  problem=$({ TABLES="" rows | awk -F '\t' 'NF != 6 { print "has " NF " columns, 6 by tabs were expected: " $0 }'
    places 0 "" | awk -F '\t' '
      ($4 in training) && training[$4] != $6 { print "gives the run " $4 " another training: " $2 }
      ($5 in scoring) && scoring[$5] != $7 { print "gives the scores " $5 " another evaluation: " $2 }
      { training[$4] = $6; scoring[$5] = $7 }'; })
  [ -z "$problem" ] || fail "$ROWS: a row ${problem%%$'\n'*}" 2
}

# run COMMAND…: runs or prints a command. Signals are forwarded to it; the script ends after the command has ended.
run() {
  local status
  if [ "$DRY_RUN" = 1 ]; then
    quoted "$@"
    return
  fi
  CHILD=starting
  "$@" &
  CHILD=$!
  # A signal may arrive before the process ID is known.
  [ "$SIGNALLED" = 0 ] || kill -TERM "$CHILD" 2>/dev/null || true
  # A signal interrupts `wait`, not the command.
  while true; do
    status=0
    wait "$CHILD" || status=$?
    kill -0 "$CHILD" 2>/dev/null || break
  done
  CHILD=""
  [ "$SIGNALLED" = 0 ] || fail "stopped; the same command resumes" "$SIGNALLED"
  case $status in 129 | 130 | 143) fail "stopped; the same command resumes" "$status" ;; esac
  return "$status"
}

# forward STATUS: sends SIGTERM to the running command.
forward() {
  SIGNALLED=$1
  case $CHILD in
    "") exit "$1" ;;
    starting) ;;
    *) kill -TERM "$CHILD" 2>/dev/null || true ;;
  esac
}

# small: settings of runs that take seconds on any machine. Minibatch and head are those of the base run.
small() {
  CONFIG=configs/simclr_paper.py:cnn
  TRAINING=(--config.image_size=32 --config.epochs=3 --config.minibatch_size=256 --config.model.head.width=256
    --config.init.workdir= --config.schedule.hold_epochs=1 --config.log_every=2 --config.checkpoint.keep_every_epochs=0)
  SCORING=(--measures=none)
}

build() {
  if [ "$SMALL" = 1 ]; then
    run "$CELLCLR_PYTHON" -m cellclr_jax.build --source=simulated --data_dir="$DATA" --weeks=2 --plates_per_week=1 \
      --sites=1 --crop_size=48 --simulator=height=400,width=480,dmso_wells=3
  else
    run "$CELLCLR_PYTHON" -m cellclr_jax.build --source=raw --download --data_dir="$DATA"
  fi || fail "stage 2 (dataset) failed"
}

# sum_of FILE: prints its SHA-256; the second program is that of macOS.
sum_of() {
  if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi
}

# fetch NAME: downloads a file of ImageNet weights, checks its SHA-256, then renames it.
fetch() {
  local file="weights/$1.pth"
  [ ! -f "$file" ] || return 0
  run curl --fail --location --silent --show-error --retry 3 --output "$file.part" "$WEIGHTS_URL/$1.pth" ||
    fail "stage 3: $WEIGHTS_URL/$1.pth cannot be downloaded"
  if [ "$DRY_RUN" = 0 ]; then
    case $(sum_of "$file.part") in "${1#*-}"*) ;; *) fail "stage 3: $file.part does not have the published SHA-256" ;; esac
  fi
  run mv "$file.part" "$file"
}

# imagenet: converts ImageNet weights into work directories weights/<encoder>.
imagenet() {
  local name
  run mkdir -p weights
  for name in $WEIGHTS; do
    [ ! -f "weights/${name%-*}/config.json" ] || continue
    fetch "$name"
    run "$CELLCLR_PYTHON" -m cellclr_jax.convert --input="weights/$name.pth" --workdir="weights/${name%-*}" ||
      fail "stage 3: weights/$name.pth cannot be converted"
  done
}

# checkpoint RUN: prints the path of a checkpoint of the run; a path that does not exist if there is none.
checkpoint() {
  local found=("$1"/checkpoints/[0-9]*)
  printf '%s\n' "${found[0]}"
}

# once MARK RESULT WHAT COMMAND…: runs a command unless MARK contains WHAT (it is complete) and RESULT exists.
once() {
  local mark=$1 result=$2 what=$3
  shift 3
  if [ "$DRY_RUN" = 1 ]; then
    case $PRINTED in *"|$mark|"*) return ;; esac
    PRINTED="$PRINTED|$mark|"
    run "$@"
  elif [ ! -e "$result" ] || [ "$(cat "$mark" 2>/dev/null)" != "$what" ]; then
    rm -f "$mark"
    run "$@" || return
    mkdir -p "$(dirname "$mark")"
    printf '%s\n' "$what" >"$mark"
  fi
}

# places SEED TABLES: a line for each row: table, row, seed, folders of run and scores, flags of training and evaluation.
places() {
  TABLES=$2 rows | awk -F '\t' -v OFS='\t' -v seed="$1" -v config="$CONFIG" '
    { base = config; sub(/.*:/, "", base) }
    $4 == "--config=" config { $3 = "base"; $4 = "-" }
    $4 ~ /^--config=[^ :]*( |$)/ { sub(/\.py/, ".py:" base, $4) }
    $5 == "-" { $5 = "as_published" }
    { run = $3 "/seed" seed; print $1, $2, seed, run, run "/scores/" $5, $4, $6 }'
}

# chosen: prints the places of the chosen tables and seeds.
chosen() {
  local seed
  for seed in $(tr , ' ' <<<"${SEEDS:-0}"); do places "$seed" "${TABLES:-}"; done
}

# write_rows: writes the places of all tables, with seeds of this and earlier calls, for cellclr_jax.paper_tables.
write_rows() {
  local seed seeds
  seeds=$({ tr , '\n' <<<"${SEEDS:-0}"; cut -s -f 3 "$OUT/rows.tsv" 2>/dev/null || true; } |
    grep -xE '0|[1-9][0-9]*' | sort -nu)
  for seed in $seeds; do places "$seed" ""; done >"$OUT/rows.tsv.part" && mv "$OUT/rows.tsv.part" "$OUT/rows.tsv"
}

# lock: locks OUT for this call; locks of killed calls are ignored.
lock() {
  local mark="$OUT/.running" holder
  holder=$(cat "$mark" 2>/dev/null || true)
  if [ -n "$holder" ] && kill -0 "$holder" 2>/dev/null; then
    fail "$OUT is in use by process $holder: wait for it (if it is another program: rm $mark)" 2
  fi
  printf '%s\n' "$$" >"$mark" || fail "$OUT cannot be written to"
  # shellcheck disable=SC2064 # OUT as it is now
  trap "rm -f $(printf '%q' "$mark")" EXIT
}

# train_and_score RUN SCORES SEED TRAINING EVALUATION: runs one row; a shared training runs once.
train_and_score() {
  local config="--config=$CONFIG" training=() evaluation=() scored="$OUT/$2/scored" what
  [ "$4" = - ] || read -r -a training <<<"$4"
  [ "$5" = - ] || read -r -a evaluation <<<"$5"
  case ${training[0]-} in --config=*) config=${training[0]} training=("${training[@]:1}") ;; esac
  # The row's flags come last, to take precedence.
  training=(-m cellclr_jax.main "$config" --workdir="$OUT/$1" --config.data_dir="$DATA" --config.seed="$3"
    ${TRAINING[@]+"${TRAINING[@]}"} ${training[@]+"${training[@]}"})
  evaluation=(-m cellclr_jax.eval --workdir="$OUT/$1" --overwrite --out="$OUT/$2" ${SCORING[@]+"${SCORING[@]}"}
    ${evaluation[@]+"${evaluation[@]}"})
  what="$(quoted "${training[@]}") # recipe $RECIPE"
  # Removes scores of another training first, in case the new training fails.
  if [ "$DRY_RUN" = 0 ] && [ "$(cat "$scored" 2>/dev/null)" != "$what $(quoted "${evaluation[@]}")" ]; then
    rm -f "$scored"
  fi
  once "$OUT/$1/trained" "$(checkpoint "$OUT/$1")" "$what" "$CELLCLR_PYTHON" "${training[@]}" || return
  once "$scored" "$OUT/$2/metrics.json" "$what $(quoted "${evaluation[@]}")" "$CELLCLR_PYTHON" "${evaluation[@]}"
}

# all_rows: trains and scores each row with each seed.
all_rows() {
  local table row seed folder scores training evaluation number=0 total
  total=$(($(chosen | wc -l)))
  if [ "$DRY_RUN" = 0 ]; then
    mkdir -p "$OUT" || fail "$OUT cannot be written to"
    lock
    write_rows || fail "$OUT cannot be written to"
  fi
  while IFS=$'\t' read -r table row seed folder scores training evaluation <&3; do
    number=$((number + 1))
    step "$number" "$total" "$table: $row, seed $seed"
    train_and_score "$folder" "$scores" "$seed" "$training" "$evaluation" || FAILED+=("$table: $row, seed $seed")
    run "$CELLCLR_PYTHON" -m cellclr_jax.paper_tables --runs="$OUT" || FAILED+=("the tables after $table: $row")
  done 3< <(chosen)
}

main() {
  parse "$@"
  check_settings
  if [ "$LIST" = 1 ]; then
    rows | cut -f 1,2
    return
  fi
  [ "$SMALL" = 0 ] || small
  check_rows
  trap 'forward 129' HUP
  trap 'forward 130' INT
  trap 'forward 143' TERM
  DATA=$(absolute "${DATA:-$CELLCLR_ROOT/data$([ "$SMALL" = 0 ] || echo /small)}")
  case ${OUT:-} in *://*) fail "--out=$OUT: expected a local folder" 2 ;; esac
  OUT=$(absolute "${OUT:-$CELLCLR_ROOT/runs/paper$([ "$SMALL" = 0 ] || echo _small)}")
  step 1 4 "environment"
  if [ "$DRY_RUN" = 1 ]; then
    CELLCLR_PYTHON=python
  elif [ "$SMALL" = 1 ]; then
    environment_ready "${EXTRAS:-}"
  else
    environment_ready "convert${EXTRAS:+,$EXTRAS}"
  fi
  [ "$DRY_RUN" = 0 ] || quoted cd "$CELLCLR_ROOT"
  cd "$CELLCLR_ROOT"
  RECIPE=$(cat configs/simclr_paper*.py cellclr_jax/default_config.py | cksum | tr ' ' -)
  step 2 4 "dataset in $DATA"
  build
  step 3 4 "initial weights"
  if [ "$SMALL" = 1 ]; then echo "      random"; else imagenet; fi
  step 4 4 "train and score in $OUT"
  all_rows
  echo "tables: $OUT/tables.md (done in $SECONDS s)"
  if [ ${#FAILED[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${FAILED[@]}" >&2
    exit 1
  fi
}

main "$@"
