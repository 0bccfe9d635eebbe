"""Between frames, uint8 [F, H, W, 3], as files and screens have them, and video, float [1, F, 3, H, W], as codecs."""

import numpy as np
import torch

from causvid.shapes import Video


def frames_from_video(video: Video) -> np.ndarray:
    """The first clip of a batch as frames."""
    scaled = video[0].float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def video_from_frames(frames: np.ndarray) -> Video:
    return torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
