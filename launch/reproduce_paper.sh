#!/usr/bin/env bash
# The paper's tables on BBBC021, from the download to one row a run: encoders, augmentations one by one and in pairs,
# temperature, minibatch, DMSO share, projection, corrections, and the quirks of the published code one by one.
#
#   bash launch/reproduce_paper.sh [SETTING …]      the real data (42 GB) and ImageNet weights; wants an accelerator
#   bash launch/reproduce_paper.sh --small          the same path on simulated plates: tiny networks' worth of training on
#                                                   two CPU cores, whose scores mean nothing
#
# Settings, as flags or as variables of the environment:
#   --data=DIR       DATA     where the dataset lies or will be built     (data, with --small data/small, at the root)
#   --out=DIR        OUT      runs and tables                             (runs/paper, with --small runs/paper_small)
#   --tables=A,B     TABLES   some of the tables of paper_tables.tsv, by name    (all)
#   --seeds=0,1,2    SEEDS    trains each run with each of these          (0)
#   --dry-run                 prints every command and runs nothing
#   --list                    prints the names of the tables with their rows
#                    EXTRAS   extras to install: cuda, cuda13 or tpu; JAX's CPU wheel without
#                    PYTHON   the Python to make .venv with, 3.11 or newer
#
# Which rows there are stands in launch/paper_tables.tsv. Run again, the same command goes on where it was stopped: the
# dataset, weights, trained steps and scores that are there stay. A run that fails is told, and the others go on.
# OUT/tables.md, tables.csv and augmentations.png are written anew after each row.
#
# Exit status: 0 all rows are there, 1 some failed, 2 wrong usage, above 128 stopped by a signal.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ROWS="$CELLCLR_ROOT/launch/paper_tables.tsv"
CONFIG=configs/simclr_paper.py:resnet50 # of the base
# Of the project that publishes the weights; the end of each name begins its SHA-256.
WEIGHTS_URL=https://download.pytorch.org/models
WEIGHTS="resnet18-f37072fd resnet50-0676ba61 resnet101-63fe2227"
SMALL=0
DRY_RUN=0
TRAINING=() # flags of every training
SCORING=()  # flags of every evaluation
FAILED=()

parse() {
  local argument
  for argument in "$@"; do
    case $argument in
      -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;;
      --small) SMALL=1 ;;
      --dry-run) DRY_RUN=1 ;;
      --list) rows | cut -f 1,2 && exit 0 ;;
      --data=*) DATA=${argument#*=} ;;
      --out=*) OUT=${argument#*=} ;;
      --tables=*) TABLES=${argument#*=} ;;
      --seeds=*) SEEDS=${argument#*=} ;;
      *) fail "unexpected argument '$argument' (--help explains)" 2 ;;
    esac
  done
}

# rows: the lines of paper_tables.tsv, of the tables that are asked for.
rows() {
  awk -F '\t' -v asked="${TABLES:-}" '
    BEGIN { count = split(asked, names, ","); for (i = 1; i <= count; i++) wanted[names[i]] = 1 }
    /^#/ || NF == 0 { next }
    !count || ($1 in wanted) { print }' "$ROWS"
}

check_settings() {
  local name
  IFS=, read -r -a names <<<"${TABLES:-}"
  for name in ${names[@]+"${names[@]}"}; do
    awk -F '\t' -v name="$name" '$1 == name { found = 1 } END { exit !found }' "$ROWS" ||
      fail "no table '$name': there are $(awk -F '\t' '!/^#/ && NF && !seen[$1]++ { printf "%s%s", s, $1; s = ", " }' "$ROWS")" 2
  done
  [[ ${SEEDS:-0} =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "SEEDS is '$SEEDS'; expected for example 0,1,2" 2
}

# run COMMAND…: runs a command, or prints it.
run() {
  if [ "$DRY_RUN" = 1 ]; then quoted "$@"; else "$@"; fi
}

# small: settings of runs that take seconds, on any machine; their scores mean nothing.
small() {
  CONFIG=configs/simclr_paper.py:cnn
  TRAINING=(--config.image_size=32 --config.epochs=2 --config.minibatch_size=64 --config.init.workdir=
    --config.schedule.hold_epochs=1 --config.log_every=5 --config.checkpoint.keep_every_epochs=0)
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

# imagenet: ImageNet weights as work directories weights/<encoder>, each file checked by its sum.
imagenet() {
  local name file
  for name in $WEIGHTS; do
    file="weights/$name.pth"
    [ ! -f "weights/${name%-*}/config.json" ] || continue
    run mkdir -p weights
    run curl --fail --location --silent --show-error --retry 3 --output "$file.part" "$WEIGHTS_URL/$name.pth" ||
      fail "stage 3: $WEIGHTS_URL/$name.pth cannot be fetched"
    if [ "$DRY_RUN" = 0 ]; then
      case $(sha256sum "$file.part") in "${name#*-}"*) ;; *) fail "stage 3: $file.part is not what was published" ;; esac
    fi
    run mv "$file.part" "$file"
    run "$CELLCLR_PYTHON" -m cellclr_jax.convert --input="$file" --workdir="weights/${name%-*}" ||
      fail "stage 3: $file cannot be converted"
  done
}

# once MARK COMMAND…: runs a command, unless a file says that this very one was run to its end.
once() {
  local mark=$1 command status
  shift
  command=$(quoted "$@")
  if [ "$DRY_RUN" = 1 ]; then
    printf '%s\n' "$command"
  elif [ ! -f "$mark" ] || [ "$(cat "$mark")" != "$command" ]; then
    status=0
    "$@" || status=$?
    [ "$status" -le 128 ] || exit "$status"
    [ "$status" = 0 ] || return "$status"
    mkdir -p "$(dirname "$mark")"
    printf '%s\n' "$command" >"$mark"
  fi
}

# places: a line for each row and seed: table, row, seed, folders of run and scores, flags of training and evaluation.
places() {
  local seed
  IFS=, read -r -a list <<<"${SEEDS:-0}"
  for seed in "${list[@]}"; do
    rows | awk -F '\t' -v OFS='\t' -v seed="$seed" -v base="--config=$CONFIG" '
      $4 == base { $3 = "base"; $4 = "-" }
      $5 == "-" { $5 = "as_published" }
      { run = $3 "/seed" seed; print $1, $2, seed, run, run "/scores/" $5, $4, $6 }'
  done
}

# train_and_score RUN SCORES SEED TRAINING EVALUATION: one row; a training that other rows share is done once.
train_and_score() {
  local config="--config=$CONFIG" training=() evaluation=()
  [ "$4" = - ] || read -r -a training <<<"$4"
  [ "$5" = - ] || read -r -a evaluation <<<"$5"
  case ${training[0]-} in --config=*) config=${training[0]} training=("${training[@]:1}") ;; esac
  # The row's flags come last, and win.
  once "$OUT/$1/trained" "$CELLCLR_PYTHON" -m cellclr_jax.main "$config" --workdir="$OUT/$1" \
    --config.data_dir="$DATA" --config.seed="$3" ${TRAINING[@]+"${TRAINING[@]}"} ${training[@]+"${training[@]}"} || return
  once "$OUT/$2/scored" "$CELLCLR_PYTHON" -m cellclr_jax.eval --workdir="$OUT/$1" --out="$OUT/$2" \
    ${SCORING[@]+"${SCORING[@]}"} ${evaluation[@]+"${evaluation[@]}"}
}

# all_rows: each row with each seed.
all_rows() {
  local table row seed folder scores training evaluation number=0 total
  total=$(places | wc -l)
  if [ "$DRY_RUN" = 0 ]; then
    mkdir -p "$OUT"
    places >"$OUT/rows.tsv"
  fi
  while IFS=$'\t' read -r table row seed folder scores training evaluation <&3; do
    number=$((number + 1))
    step "$number" "$total" "$table: $row, seed $seed"
    train_and_score "$folder" "$scores" "$seed" "$training" "$evaluation" || FAILED+=("$table: $row, seed $seed")
    run "$CELLCLR_PYTHON" -m cellclr_jax.paper_tables --runs="$OUT" || fail "the tables cannot be written"
  done 3< <(places)
}

main() {
  parse "$@"
  check_settings
  [ "$SMALL" = 0 ] || small
  DATA=$(absolute "${DATA:-$CELLCLR_ROOT/data$([ "$SMALL" = 0 ] || echo /small)}")
  OUT=$(absolute "${OUT:-$CELLCLR_ROOT/runs/paper$([ "$SMALL" = 0 ] || echo _small)}")
  step 1 4 "environment"
  if [ "$DRY_RUN" = 1 ]; then
    CELLCLR_PYTHON=python
  elif [ "$SMALL" = 1 ]; then
    environment_ready "${EXTRAS:-}"
  else
    environment_ready "convert${EXTRAS:+,$EXTRAS}"
  fi
  cd "$CELLCLR_ROOT"
  step 2 4 "dataset in $DATA"
  build
  step 3 4 "initial weights"
  if [ "$SMALL" = 1 ]; then echo "      random ones"; else imagenet; fi
  step 4 4 "train and score in $OUT"
  all_rows
  echo "tables: $OUT/tables.md (done in $SECONDS s)"
  if [ ${#FAILED[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${FAILED[@]}" >&2
    exit 1
  fi
}

main "$@"
