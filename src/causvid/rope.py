"""Rotary positions in time, height and width, as Wan has them, at any offset and without a table that ends.

A head of width E is split into E/2 pairs of neighbouring channels; E//6 pairs turn with the row, E//6 with the column,
the rest with the frame. Angles are formed in float64: only differences of positions matter to attention, so a stream
may run to any frame number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

THETA = 10_000.0


@dataclass(frozen=True)
class Rotation:
    """cos and sin of every token's angles, [B or 1, L, N or 1, E/2]: heads may turn alike."""

    cos: Tensor
    sin: Tensor

    @cached_property
    def turn(self) -> Tensor:
        """The same as complex numbers of length 1."""
        return torch.complex(self.cos, self.sin)


def axis_pairs(head_width: int) -> tuple[int, int, int]:
    """Channel pairs that turn with time, height, width: 22, 21, 21 for a head of 128."""
    space = head_width // 6
    return head_width // 2 - 2 * space, space, space


def _angles(positions: Tensor, pairs: int) -> Tensor:
    """[n] -> [n, pairs] in float64. Each axis has its own denominator."""
    frequency = THETA ** (-torch.arange(pairs, dtype=torch.float64, device=positions.device) / pairs)
    return positions.to(torch.float64)[..., None] * frequency


def grid_rotation(
    num_frames: int,
    height: int,
    width: int,
    head_width: int,
    *,
    first_frames: Sequence[int] = (0,),
    ways: Tensor | None = None,
    device=None,
) -> Rotation:
    """The rotation of a patch grid whose first frame is number `first_frames[b]` in stream b.

    To head n frame t has come `ways[b, t, n]` patches to the right: columns are places in a world that goes by."""
    pairs_t, pairs_h, pairs_w = axis_pairs(head_width)
    starts = torch.tensor(first_frames, dtype=torch.float64, device=device)
    steps = torch.arange(num_frames, dtype=torch.float64, device=device)
    time = _angles(starts[:, None] + steps, pairs_t)  # [B, T, pairs_t]
    rows = _angles(torch.arange(height, device=device), pairs_h)
    if ways is None:
        ways = torch.zeros(1, 1, 1, dtype=torch.float64, device=device)
    places = ways.to(torch.float64)[:, :, None] + torch.arange(width, device=device)[:, None]  # [B, T, w, N]
    columns = _angles(places, pairs_w)
    shape = (max(len(starts), len(ways)), num_frames, height, width, ways.shape[-1])
    angles = torch.cat(
        [
            time[:, :, None, None, None].expand(*shape, -1),
            rows[None, None, :, None, None].expand(*shape, -1),
            columns[:, :, None].expand(*shape, -1),
        ],
        dim=-1,
    ).flatten(1, 3)
    return Rotation(angles.cos().float(), angles.sin().float())


def rotate(x_BLNE: Tensor, rotation: Rotation) -> Tensor:
    """Turn neighbouring channel pairs; computed in float32, returned in the dtype of x."""
    pairs = x_BLNE.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # knows no complex numbers, and makes one loop of what follows anyway
        even, odd = pairs.unbind(-1)
        cos, sin = rotation.cos, rotation.sin
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    else:  # seven times faster on a CPU than the above in single steps
        turned = torch.view_as_real(torch.view_as_complex(pairs) * rotation.turn)
    return turned.flatten(-2).to(x_BLNE.dtype)


def shift_in_time(keys_MNE: Tensor, num_frames: int) -> Tensor:
    """Move keys that are already rotated by `num_frames` frames: only the pairs that turn with time are touched."""
    pairs = axis_pairs(keys_MNE.shape[-1])[0]
    angles = _angles(torch.tensor([num_frames], device=keys_MNE.device), pairs)
    moved = rotate(keys_MNE[..., : 2 * pairs], Rotation(angles.cos().float(), angles.sin().float()))
    return torch.cat([moved, keys_MNE[..., 2 * pairs :]], dim=-1)
