#!/usr/bin/env bash
# The paper's ablation (Table 4), and the rows that came after it: one student for every way of making one.
# Stages that are finished are skipped, those that were interrupted go on. Ends with table4.tsv (row, weights) and, on
# Vista, with table4.md, table4.png and figure8.png beside it: all rows on the same prompts with the same noise.
#
#   runs/table4.sh                          Vista, on a CPU
#   PRESET=wan-1.3b LAUNCH="torchrun --nproc-per-node 8 -m causvid" runs/table4.sh
# shellcheck disable=SC2046,SC2086  # settings are words
set -euo pipefail
trap 'exit 130' INT TERM # a stage that is interrupted saves and ends well: it is not finished

PRESET=${PRESET:-vista}
ROOT=${ROOT:-local}
SEED=${SEED:-0}
LAUNCH=${LAUNCH:-causvid}
TEACHER=${TEACHER:-$ROOT/teacher/weights} # sees both ways
CAUSAL=${CAUSAL:-$ROOT/causal/weights}    # fine-tuned from it, block-causal: see docs/how-to/train.md
DATA=${DATA:-$ROOT/latents}
INIT=${INIT:---minutes 10} # how long each stage lasts: --minutes N or --steps N
DMD=${DMD:---minutes 40}
PAIRS_SETTINGS=${PAIRS_SETTINGS:-} INIT_SETTINGS=${INIT_SETTINGS:-} DMD_SETTINGS=${DMD_SETTINGS:-} # --set a.b=c ...
PROMPTS=${PROMPTS:-32} # of the table; 0 leaves it out. The teachers take ten seconds and more for each
STREAMS=${STREAMS:-4}  # of the figure, of 30 seconds, for each of five rows
PYTHON=${PYTHON:-python}
TABLE_SETTINGS=${TABLE_SETTINGS:-} # further options of scripts/table4.py
OUT=$ROOT/table4/seed-$SEED

for weights in "$TEACHER" "$CAUSAL"; do
  if [ ! -e "$weights" ]; then
    echo "there is no $weights: train both teachers first (docs/how-to/train.md), or after make train say ROOT=local/vista" >&2
    exit 1
  fi
done

train() { # stage run-name arguments...
  local stage=$1 run=$OUT/$2
  shift 2
  if [ ! -e "$run/finished" ]; then
    $LAUNCH train "$stage" --run-dir "$run" --preset "$PRESET" --set seed="$SEED" "$@"
    touch "$run/finished"
  fi
}

pairs() { # folder-name arguments...: trajectories do not depend on the seed of training
  local folder=$ROOT/table4/$1
  shift
  $LAUNCH train ode-pairs --run-dir "$folder" --preset "$PRESET" "$@" $PAIRS_SETTINGS
}

init() { train ode-init "$@" $INIT $INIT_SETTINGS; }
dmd() { train dmd "$@" $DMD $DMD_SETTINGS; }
noised_data=(--set input=data --set data="$DATA" --set changing=0 --set replay=0 --set critic_batch=null)
own_past=(--set input=self --set changing=0) # the rows differ in one thing only
from() { echo --set "teacher=$TEACHER" --set "init=$1"; }

{
  pairs pairs --set teacher="$TEACHER"
  init ode --set teacher="$TEACHER" --set pairs="$ROOT/table4/pairs"

  # the four few-step rows of the paper: its student learns on noised data
  dmd no-init "${noised_data[@]}" --set teacher="$TEACHER" --set init=null
  dmd causal-teacher "${noised_data[@]}" --set teacher="$CAUSAL" --set sight=causal --set init="$OUT/ode/weights"
  dmd full "${noised_data[@]}" $(from "$OUT/ode/weights")

  # on its own past (Self Forcing)
  dmd self "${own_past[@]}" $(from "$OUT/ode/weights")

  # trajectories of a causal teacher behind a clean past (Causal Forcing); then the same without trajectories
  pairs pairs-causal --set teacher="$CAUSAL" --set sight=causal --set past=data --set data="$DATA"
  init causal-ode --set teacher="$CAUSAL" --set pairs="$ROOT/table4/pairs-causal" --set past=clean
  dmd causal-ode-self "${own_past[@]}" $(from "$OUT/causal-ode/weights")
  init causal-cd --set teacher="$CAUSAL" --set method=consistency --set past=clean --set pairs=null --set data="$DATA"
  dmd causal-cd-self "${own_past[@]}" $(from "$OUT/causal-cd/weights")
}

{
  printf 'bidirectional\t%s\n' "$TEACHER"
  printf 'causal\t%s\n' "$CAUSAL"
  for row in no-init ode causal-teacher full self causal-ode causal-ode-self causal-cd causal-cd-self; do
    printf '%s\t%s\n' "$row" "$OUT/$row/weights"
  done
} >"$OUT/table4.tsv"
echo "$OUT/table4.tsv"
if [ "$PRESET" = vista ] && [ "$PROMPTS" -gt 0 ]; then
  lists=("$OUT/table4.tsv") # and what other seeds made before
  for list in "$ROOT"/table4/seed-*/table4.tsv; do
    [ "$list" = "$OUT/table4.tsv" ] || lists+=("$list")
  done
  $PYTHON "$(dirname "$0")/../scripts/table4.py" "${lists[@]}" --prompts "$PROMPTS" --streams "$STREAMS" $TABLE_SETTINGS
fi
