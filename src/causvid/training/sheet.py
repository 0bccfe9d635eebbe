"""Samples at a glance: one prompt a row, evenly spaced frames from left to right, the prompt above."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from causvid.atomic import whole_file
from causvid.shapes import Video

LARGE = 256  # (ours) pixels across, from which on pictures are shown as they are


def draw_sheet(
    file: Path, videos: Sequence[Tensor], prompts: Sequence[str], columns: int = 8, scale: int | None = None
) -> None:
    """Write a PNG of videos [1, F, 3, H, W], of any lengths. Single frames are laid out side by side. `scale` None:
    small pictures twice as large."""
    strips = [_to_frames(video) for video in videos]
    scale = scale or (1 if strips[0].shape[2] >= LARGE else 2)
    height, width = strips[0].shape[1] * scale, strips[0].shape[2] * scale
    gap, label = 4, 16
    sheet = Image.new("RGB", (columns * (width + gap) + gap, len(strips) * (height + label + gap) + gap), (24, 24, 28))
    draw = ImageDraw.Draw(sheet)
    for row, (frames, prompt) in enumerate(zip(strips, prompts, strict=True)):
        top = gap + row * (height + label + gap)
        draw.text((gap, top), prompt, fill=(210, 210, 215))
        chosen = np.unique(np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int))
        for place, index in enumerate(chosen):
            picture = Image.fromarray(frames[index]).resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(picture, (gap + place * (width + gap), top + label))
    with whole_file(file) as temporary:
        sheet.save(temporary)


def _to_frames(video: Video) -> np.ndarray:
    pixels = (video[0].float().clamp(-1, 1) + 1) * 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
