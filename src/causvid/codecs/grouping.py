"""How video pieces fall into the groups of pixel frames that make one latent frame each."""

from torch import Tensor

from causvid.shapes import Video


def frame_groups(video: Video, started: bool, time_factor: int, space_factor: int) -> list[Tensor]:
    """Cut a piece into one video per latent frame: one pixel frame if the clip starts here, then `time_factor` each."""
    num_frames, height, width = video.shape[1], *video.shape[3:]
    if height % space_factor or width % space_factor:
        raise ValueError(
            f"frames of {width}x{height} do not divide into latents of {space_factor}x{space_factor} pixels; "
            f"use {width - width % space_factor}x{height - height % space_factor}"
        )
    first = 0 if started else 1
    if num_frames <= 0 or num_frames < first or (num_frames - first) % time_factor:
        rule = f"multiples of {time_factor}" if started else f"1 + {time_factor}k frames"
        raise ValueError(f"a piece of {num_frames} frames does not fill whole latent frames; use {rule} here")
    sizes = [1] * first + [time_factor] * ((num_frames - first) // time_factor)
    return list(video.split(sizes, dim=1))
