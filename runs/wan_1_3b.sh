#!/usr/bin/env bash
# The pipeline at real scale: Wan2.1 1.3B, on one node of 8 GPUs of 80 GB. Every line resumes where it stopped.
# Needs a Wan2.1-T2V-1.3B folder as downloaded, and prompts/train.txt with one prompt a line.
set -euo pipefail

MODEL=${MODEL:-models/Wan2.1-T2V-1.3B}
GPUS=${GPUS:-8}
ROOT=${ROOT:-local/wan}
causvid="torchrun --standalone --nproc-per-node $GPUS -m causvid"
teacher=(--preset wan-1.3b --set teacher="$MODEL")

# 1. 1,500 trajectories of the teacher: 48 steps with guidance each
$causvid train ode-pairs --run-dir "$ROOT/pairs" "${teacher[@]}"

# 2. a causal student that ends where the trajectories end
$causvid train ode-init --run-dir "$ROOT/ode-init" "${teacher[@]}" --set pairs="$ROOT/pairs" --steps 3000

# 3. distillation on the student's own past: 120 updates of the student, 600 of the critic
$causvid train dmd --run-dir "$ROOT/dmd" "${teacher[@]}" --set init="$ROOT/ode-init/weights" --steps 120

# 4. stream it
causvid generate "A small boat with a red sail crosses a windy bay." --model "$MODEL" \
  --student "$ROOT/dmd/weights/student.safetensors" --recipe self-forcing -o "$ROOT/boat.mp4"

# On one GPU: adapters on one frozen copy of the teacher instead of line 3
#   causvid train dmd --run-dir "$ROOT/lora" --preset wan-1.3b-lora --set teacher="$MODEL" \
#     --set init="$ROOT/ode-init/weights" --steps 500
# Noised clips of your own instead of the student's past (the paper's way): prepare them, then --preset wan-1.3b-data;
# its levels are those of --recipe causvid-4step in line 4
