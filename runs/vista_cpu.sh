#!/usr/bin/env bash
# Vista on two CPU cores, about five hours; a quarter of it shows most of what there is to see. Run again to go on.
#
#   runs/vista_cpu.sh
#   TEACHER="--minutes 300" runs/vista_cpu.sh          more of one thing
#   PIECE=30 runs/vista_cpu.sh                         half an hour at a time
set -euo pipefail

export ROOT=${ROOT:-local/vista} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
TEXT=${TEXT:---minutes 8}
IMAGES=${IMAGES:-81920} SHORT=${SHORT:-12288} LONG=${LONG:-7296} CHANGING=${CHANGING:-3200} SELDOM=${SELDOM:-3072} WORKERS=${WORKERS:-2}
TEACHER=${TEACHER:---minutes 120}
CAUSAL=${CAUSAL:---minutes 20}
PAIRS=${PAIRS:-256} GUIDANCE=${GUIDANCE:-3.0} DMD_GUIDANCE=${DMD_GUIDANCE:-2.0} # distillation under a guide wants less
INIT=${INIT:---minutes 15}
DMD=${DMD:---minutes 60}
FRAMEWISE=${FRAMEWISE:---minutes 20}
CHOICE=${CHOICE:-16} # prompts by which the best student on the way is chosen
PROMPTS=${PROMPTS:-64} # of the evaluation; the teacher takes ten seconds and more for each
TEACHER_SETTINGS=${TEACHER_SETTINGS:-} CAUSAL_SETTINGS=${CAUSAL_SETTINGS:-} CODEC_SETTINGS=${CODEC_SETTINGS:-}
PAIRS_SETTINGS=${PAIRS_SETTINGS:-} INIT_SETTINGS=${INIT_SETTINGS:-} DMD_SETTINGS=${DMD_SETTINGS:-}
EVALUATE_SETTINGS=${EVALUATE_SETTINGS:-}

. "$(dirname "$0")/vista.sh"
