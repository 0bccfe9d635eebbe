#!/usr/bin/env bash
# Vista on one big GPU, in sittings of at most ten minutes: run it again until it says that all is done.
#
#   until runs/vista_gpu.sh; do [ $? = 75 ] || break; done
set -euo pipefail

export ROOT=${ROOT:-local/vista-gpu}
DEVICE=${DEVICE:-cuda}
PRESET=${PRESET:-vista-moving} # the packaged teacher's
PIECE=${PIECE:-10}
cores=$(nproc)
TEXT=${TEXT:---minutes 3}
IMAGES=${IMAGES:-262144} SHORT=${SHORT:-49152} LONG=${LONG:-24576} CHANGING=${CHANGING:-8192} SELDOM=${SELDOM:-8192}
WORKERS=${WORKERS:-$cores}
TEACHER=${TEACHER:---minutes 25}
CAUSAL=${CAUSAL:---minutes 5}
PAIRS=${PAIRS:-2048} GUIDANCE=${GUIDANCE:-3.0} DMD_GUIDANCE=${DMD_GUIDANCE:-2.0} # distillation under a guide wants less
INIT=${INIT:---minutes 5}
DMD=${DMD:---minutes 15}
FRAMEWISE=${FRAMEWISE:---minutes 8}
CHOICE=${CHOICE:-64} # prompts by which the best student on the way is chosen
PROMPTS=${PROMPTS:-256}

# batches that fill the device; the levels are those of the preset
images='{"pool":"images","num_frames":1,"batch":512,"shifts":[1.5,4,12]}'
short='{"pool":"short","num_frames":6,"batch":128,"shifts":[2,5,25]}'
long='{"pool":"long","num_frames":21,"batch":48,"shifts":[2.5,10,80]}'
changing='{"pool":"changing","num_frames":21,"batch":48,"shifts":[10,60,200]}'
seldom='{"pool":"seldom","num_frames":21,"batch":48,"shifts":[2.5,10,80]}'
TEACHER_SETTINGS=${TEACHER_SETTINGS:---set lengths=[$images,$short,$long,$changing,$seldom]}
CAUSAL_SETTINGS=${CAUSAL_SETTINGS:-$TEACHER_SETTINGS}
PAIRS_SETTINGS=${PAIRS_SETTINGS:---set batch=64 --set pairs_per_shard=64 --set steps=48}
INIT_SETTINGS=${INIT_SETTINGS:---set batch=32}
DMD_SETTINGS=${DMD_SETTINGS:---set batch=32 --set critic_batch=32 --set replay=0}
CODEC_SETTINGS=${CODEC_SETTINGS:-} EVALUATE_SETTINGS=${EVALUATE_SETTINGS:-}

. "$(dirname "$0")/vista.sh"
