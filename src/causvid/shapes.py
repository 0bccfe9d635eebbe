"""The dimension legend, as type aliases.

    B batch    F pixel frames    T latent frames    K frames per chunk    C channels    H, W height, width
    L tokens = T*S    S tokens per latent frame    M remembered tokens    Y text tokens
    D model width    N heads    E head width    Q denoising steps

Public layout is [B, T, C, H, W] at every boundary. `video` is float RGB in [-1, 1]; `frames` are uint8, at the edges.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float, UInt8
from torch import Tensor

Latents = Float[Tensor, "B T C H W"]
FrameSigma = Float[Tensor, "B T"]  # noise level of every latent frame, 0 = data, 1 = noise
Text = Float[Tensor, "B Y D_text"]
Video = Float[Tensor, "B F 3 H_pixels W_pixels"]  # latents have an H and W of their own
Frames = UInt8[Any, "F H_pixels W_pixels 3"]  # numpy or torch
TokenMask = Bool[Tensor, "L L"]
Scalar = Float[Tensor, ""]

# All that a loss or a sampler needs of a network: (x_t, sigma, text) -> v.
Velocity = Callable[[Latents, FrameSigma, Any], Latents]
