#!/usr/bin/env bash
# Vista from nothing to a student that streams: every stage in its order. Started by vista_cpu.sh and vista_gpu.sh, which
# say how long each of them lasts. What is finished is skipped, what was interrupted goes on: run the same command again.
#
#   ROOT                  where all of it lives
#   TEXT, TEACHER, ...    how long a stage lasts, as `--minutes 8` or `--steps 500`; more than last time trains on (what
#                         was made from it stays as it is: remove the folders that should be made anew)
#   TEACHER_SETTINGS, ... further settings of a stage, `--set a.b=c`
#   PRESET                of the networks: vista, or vista-moving, which are told how the view moves and are wider
#   PIECE                 stop after about so many minutes with everything saved (exit code 75); again to go on
# shellcheck disable=SC2086  # settings are words
set -euo pipefail
trap 'exit 130' INT TERM # a stage that is interrupted saves and ends well: it is not finished
cd "$(dirname "$0")/.."

ROOT=${ROOT:-local/vista}
CAUSVID=${CAUSVID:-causvid}
PYTHON=${PYTHON:-python}
DEVICE=${DEVICE:-cpu}
PIECE=${PIECE:-}
PRESET=${PRESET:-vista}
begun=$SECONDS

piece() { # a command, with the time that is left for this sitting
  if [ -z "$PIECE" ]; then
    "$@"
    return
  fi
  local left=$((PIECE * 60 - 40 - (SECONDS - begun))) code=0 # 40 s to save in
  if [ "$left" -gt 20 ]; then
    timeout --signal INT "$left" "$@" || code=$?
  else
    code=124
  fi
  if [ "$code" = 124 ]; then
    echo "== to be continued: run the same command again"
    exit 75
  fi
  return "$code"
}

finished() { [ "$(cat "$ROOT/$1/finished" 2>/dev/null)" = "$2" ]; }

stage() { # folder budget stage settings...
  local folder=$1 budget=$2 name=$3
  shift 3
  if finished "$folder" "$budget"; then
    echo "== $folder: done ($budget)"
    return
  fi
  echo "== $folder: causvid train $name $budget $*"
  piece $CAUSVID train "$name" --run-dir "$ROOT/$folder" --device "$DEVICE" $budget "$@"
  echo "$budget" >"$ROOT/$folder/finished"
}

start_from() { # folder copy: the newest checkpoint of a run, under a name that stays
  if [ ! -e "$ROOT/$2" ]; then
    cp -r "$(find "$ROOT/$1/checkpoints" -name 'step-*' | sort | tail -1)" "$ROOT/$2"
  fi
}

network=(--preset "$PRESET")
read=("${network[@]}" --set "data=$ROOT/latents" --set "text_init=$ROOT/text/weights/text.safetensors")
teacher=("${network[@]}" --set "teacher=$ROOT/teacher/weights")
guide=$ROOT/teacher/weights/guide.safetensors # the teacher as it was earlier: a worse one, to lead away from
guided=("${teacher[@]}" --set "guide=$guide")
mkdir -p "$ROOT"

# 1. The codec that is shipped serves; CODEC="--minutes 35" trains another one and ships that: all latents change.
if [ -n "${CODEC:-}" ]; then
  stage codec "$CODEC" codec $CODEC_SETTINGS
  piece "$PYTHON" scripts/package_vista.py --codec "$ROOT/codec/weights/codec.safetensors"
fi

# 2. The text encoder learns what captions say before there are pictures, and stays as it is.
stage text "$TEXT" text

# 3. Clips as latents. Workers render and encode; the shards that exist stay.
echo "== latents: $IMAGES images, $SHORT short clips, $LONG long ones, $CHANGING in which something changes, $SELDOM" \
  "in which something moves as it seldom does"
piece $CAUSVID latents -o "$ROOT/latents" --images "$IMAGES" --short "$SHORT" --long "$LONG" --changing "$CHANGING" \
  --seldom "$SELDOM" --workers "$WORKERS"

# 4. The teacher sees both ways. 5. From it, one that is block-causal and denoises in many steps: a row of Table 4.
stage teacher "$TEACHER" teacher "${read[@]}" $TEACHER_SETTINGS
start_from teacher causal-start
stage causal "$CAUSAL" teacher "${read[@]}" --set sight=causal --set "init=$ROOT/causal-start" --set align_weight=0 \
  --set 'phases=[{"until":1.0,"mix":[0.1,0.3,0.3,0.15,0.15]}]' $CAUSAL_SETTINGS

# 6. The teacher's trajectories. 7. A causal student that ends where they end.
stage pairs "--set num_pairs=$PAIRS" ode-pairs "${guided[@]}" --set "guidance=$GUIDANCE" $PAIRS_SETTINGS
stage ode-init "$INIT" ode-init "${teacher[@]}" --set "pairs=$ROOT/pairs" $INIT_SETTINGS

# 8. Distribution matching: chunks of three in four steps. 9. From that, a chunk for every latent frame in two steps.
stage dmd "$DMD" dmd "${guided[@]}" --set "guidance=$DMD_GUIDANCE" --set "init=$ROOT/ode-init/weights" $DMD_SETTINGS
if [ ! -e "$ROOT/chosen" ]; then
  echo "== choosing among the students on the way"
  piece $CAUSVID evaluate choose "$ROOT/dmd" --prompts "$CHOICE" --out "$ROOT/choice" --device "$DEVICE" | tee "$ROOT/choice.log"
  tail -1 "$ROOT/choice.log" >"$ROOT/chosen"
fi
student=$(cat "$ROOT/chosen")
stage framewise "$FRAMEWISE" dmd "${guided[@]}" --set "guidance=$DMD_GUIDANCE" --set "init=$student" \
  --set student.chunk=1 --set 'student.sigmas=[1.0,0.75,0.0]' $DMD_SETTINGS

# 10. Models as folders: causvid generate --model $ROOT/model ... (without --out, the package itself)
echo "== packaging into $ROOT/model and $ROOT/model-framewise"
package=("$PYTHON" scripts/package_vista.py --teacher "$ROOT/teacher/weights" --guide "$guide" --guidance "$GUIDANCE")
piece "${package[@]}" --student "$student" --out "$ROOT/model"
piece "${package[@]}" --student "$ROOT/framewise/weights" --framewise --out "$ROOT/model-framewise"

# 11. How good they are, with the judge that nothing was chosen by.
if [ "$PROMPTS" -gt 0 ]; then
  for who in "model teacher" "model student" "model-framewise student"; do
    read -r model role <<<"$who"
    which=$(sha256sum <"$ROOT/$model/SHA256SUMS" | cut -c1-8) # clips of other weights need another folder
    echo "== evaluating the $role of $ROOT/$model on $PROMPTS prompts"
    piece $CAUSVID evaluate --model "$ROOT/$model" --role "$role" --prompts "$PROMPTS" --device "$DEVICE" \
      --out "$ROOT/evaluation/$model-$role-$which" $EVALUATE_SETTINGS
  done
fi
echo "== all done: causvid generate 'a city bus drives through the city at night' --model $ROOT/model -o bus.mp4"
