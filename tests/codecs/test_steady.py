"""Pictures carried on between latent frames: known movements are found and followed, what rests stays, pieces equal
the whole."""

import math

import pytest
import torch

from causvid.codecs.steady import SteadyStream, carried, halved, movement
from causvid.errors import UserError

HEIGHT, WIDTH = 32, 64
WAVES = [(0.11, 0.05, 0.3), (-0.07, 0.16, 1.1), (0.21, -0.09, 2.0), (0.02, 0.23, 0.7), (0.31, 0.12, 1.9)]


def seen_from(x, y=0.0):
    """A picture [3, H, W] of one endless scene, x and y pixels to the right and down."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT) + float(y), torch.arange(WIDTH) + float(x), indexing="ij")
    colours = [sum(torch.sin(a * columns + b * rows + c + colour) for a, b, c in WAVES) / 6 for colour in range(3)]
    return torch.stack(colours)


def video(places):
    return torch.stack([seen_from(x, y) for x, y in places])[None]


class Frames:
    """A stream of frames that are there already."""

    def __init__(self):
        self.given = 0

    def __call__(self, piece):
        self.given += 1
        return piece

    def save(self):
        return [self.given]

    def load(self, state):
        (self.given,) = state


@pytest.mark.parametrize("x, y", [(0, 0), (4, 0), (-6, 2), (8, -4)])
def test_known_movements_are_found(x, y):
    """The scene is seen from further right: what is here was further right before."""
    back = movement(halved(video([(x, y)])), halved(video([(0, 0)])))
    assert back.shape == (1, 2, HEIGHT // 2, WIDTH // 2)
    found = back[..., 4:-4, 8:-8]
    torch.testing.assert_close(found[:, 0], torch.full_like(found[:, 0], x), rtol=0, atol=0.6)
    torch.testing.assert_close(found[:, 1], torch.full_like(found[:, 1], y), rtol=0, atol=0.6)


def test_light_that_changes_is_no_movement():
    before = halved(video([(0, 0)]))
    assert movement(before + 0.5, before).abs().max() < 0.3
    assert movement(before, before).abs().max() < 1e-6


def test_what_is_carried_comes_from_where_it_was():
    rng = torch.Generator().manual_seed(0)
    group = torch.rand(2, 3, 3, 8, 12, generator=rng) * 2 - 1
    back = torch.zeros(2, 2, 4, 6)
    back[:, 0], back[:, 1] = 4.0, -2.0
    moved = carried(group, back, [0.0, 0.5, -0.5])
    torch.testing.assert_close(moved[:, 0], group[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[:, 1, :, 1:, :-2], group[:, 1, :, :-1, 2:], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[:, 2, :, :-1, 2:], group[:, 2, :, 1:, :-2], rtol=0, atol=1e-5)


def test_a_clip_that_halts_goes_on_as_what_it_shows_would():
    """The view goes two pixels a frame; of every group all frames show the middle."""
    true = video([(2 * t, 0) for t in range(13)])
    halting = video([(0, 0)] + [(2 * (4 * k + 2.5), 0) for k in range(3) for _ in range(4)])
    steadied = SteadyStream(Frames(), 4, 1.0)(halting)
    off, before = ((clip - true)[..., 6:-6, 14:-14].square().mean() for clip in (steadied, halting))
    assert off < 0.05 * before
    rest = video([(3, 1)] * 9)
    torch.testing.assert_close(SteadyStream(Frames(), 4, 1.0)(rest), rest.clamp(-1, 1), rtol=0, atol=1e-5)


def test_a_smaller_share_goes_less_far():
    halting = video([(0, 0)] + [(4.0, 0)] * 4)
    differences = [(SteadyStream(Frames(), 4, share)(halting) - halting).abs().mean() for share in (0.0, 0.3, 0.6, 0.9)]
    assert differences[0] < 1e-5 and all(a < b for a, b in zip(differences, differences[1:]))


@pytest.mark.parametrize("sizes", [[1, 4, 4, 8], [5, 12], [1, 16]])
def test_pieces_equal_the_whole_and_a_stream_can_go_back(sizes):
    clip = video([(0.7 * t + 2 * math.sin(t), 0.2 * t) for t in range(17)])
    whole = SteadyStream(Frames(), 4, 0.9)(clip)
    stream, pieces, kept = SteadyStream(Frames(), 4, 0.9), [], []
    for piece in clip.split(sizes, dim=1):
        kept.append((stream.save(), piece))
        pieces.append(stream(piece))
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    state, last = kept[-1]
    stream.load(state)
    assert torch.equal(stream(last), pieces[-1]) and stream.frames.given == len(sizes)
    assert torch.equal(whole[:, :1], clip[:, :1])


def test_a_share_is_a_share():
    with pytest.raises(UserError, match="0 to 1"):
        SteadyStream(Frames(), 4, 1.5)
