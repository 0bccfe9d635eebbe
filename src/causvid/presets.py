"""Named sizes and settings as values. A preset says everything; variants show their difference from a parent."""

from dataclasses import replace

from causvid.models.dit import VideoDiTConfig
from causvid.text.vista import VistaTextConfig

# Vista's pictures are 64 x 112: latents of 8 x 14, 28 tokens a frame, 588 in a clip of 21 latent frames.
VISTA_DIT = VideoDiTConfig(
    width=256,
    ffn_width=1024,
    num_heads=4,
    num_layers=8,
    in_channels=16,
    out_channels=16,
    patch=2,
    freq_width=256,
    text_width=192,
    text_length=48,
    eps=1e-6,
    precision="islands",
)
VISTA_DIT_WIDE = replace(VISTA_DIT, width=384, ffn_width=1536, num_heads=6, num_layers=12)

VISTA_TEXT = VistaTextConfig(width=192, ffn_width=768, num_layers=2, num_heads=4, length=48)
