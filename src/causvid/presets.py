"""Named sizes and settings as values. A preset says everything; variants show their difference from a parent."""

from dataclasses import replace

from causvid.cache import CachePolicy
from causvid.flow import sigma_grid
from causvid.models.dit import VideoDiTConfig
from causvid.models.wan import WAN_1_3B
from causvid.rollout import RolloutConfig
from causvid.text.vista import VistaTextConfig
from causvid.view_noise import ViewNoise

# Vista's pictures are 64 x 112: latents of 8 x 14, 28 tokens a frame, 588 in a clip of 21 latent frames.
VISTA_DIT = VideoDiTConfig(
    width=192,
    ffn_width=768,
    num_heads=4,
    num_layers=8,
    in_channels=16 + 3,
    out_channels=16,
    patch=2,
    freq_width=256,
    text_width=192,
    text_length=64,  # the longest captions of the grammar have 49 words
    eps=1e-6,
    precision="islands",
    landmarks=21,
    overlap=1,
)
VISTA_DIT_WIDE = replace(VISTA_DIT, width=384, ffn_width=1536, num_heads=6, num_layers=12)  # for a GPU

# Told how the view moves (docs/log.md, 2026-11-22): scenery at half of the picture's height and above is far away, then
# come the middle and the ground, and every head goes along with one of these or with the view (worlds/vista/scenery.py)
VISTA_NOISE = ViewNoise(share=0.8, parallax=(0.12, 0.12, 0.12, 0.12, 0.4, 0.4, 1.0, 1.0))
VISTA_MOVING_DIT = replace(VISTA_DIT, ffn_width=2048, parallax=(0.0, 0.12, 0.4, 1.0))

VISTA_TEXT = VistaTextConfig(width=192, ffn_width=768, num_layers=2, num_heads=4, length=64)

# ---- students: levels, chunks and memory, which belong to their weights -------------------------------------------

# the first latent frame alone: it is one picture, and there sooner
VISTA_STUDENT = RolloutConfig(
    sigmas=tuple(sigma_grid(4, 3.0)), shift=3.0, chunk=3, first_chunk=1, policy=CachePolicy(window=21)
)
# frames that share their noise do not average it away: what is fine shows at lower levels (docs/log.md, 2026-11-22)
VISTA_MOVING_STUDENT = replace(VISTA_STUDENT, sigmas=tuple(sigma_grid(4, 2.0)), shift=2.0)
VISTA_STUDENT_FRAMEWISE = replace(VISTA_STUDENT, sigmas=tuple(sigma_grid(2, 3.0)), chunk=1)

WAN_DIT = WAN_1_3B
# (Self Forcing) 1000/750/500/250 warped by 5, three latent frames a chunk
WAN_STUDENT = RolloutConfig(sigmas=tuple(sigma_grid(4, 5.0)), shift=5.0, chunk=3, policy=CachePolicy(window=21))
# (CausVid's released 4-step student) the same steps warped by 8
WAN_DATA_STUDENT = replace(WAN_STUDENT, sigmas=tuple(sigma_grid(4, 8.0)), shift=8.0)
# (paper, section 5) 999/748/502/247 and five latent frames a chunk; a clip is 20 of them
PAPER_STUDENT = RolloutConfig(sigmas=tuple(sigma_grid(4)), shift=1.0, chunk=5, policy=CachePolicy(window=20))
