"""The codec stage at a size of milliseconds: exact resume, a falling error, losses with known answers."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from causvid.codecs.vista import VistaAutoencoder, VistaCodec, VistaCodecConfig
from causvid.stages import codec
from causvid.stages.codec import ClipPool, CodecConfig, ConvMuon
from causvid.tensor_files import read_tensors
from causvid.training.optim import Muon, OptimConfig

TINY = CodecConfig(
    model=VistaCodecConfig(4, (8, 8, 8), (1, 1, 1), (8, 8, 8), (1, 1, 1)),
    optim=OptimConfig(lr=1e-2, warmup=2, decay_from=0.0),
    batch=2,
    num_latents=2,
    pool=6,
    dtype="float32",
)


def stripes(index: int, num_frames: int) -> np.ndarray:
    """Moving stripes of some colour, 16 x 16: more than four components, so that there is something to learn."""
    rng = np.random.default_rng(index)
    speed, width, colour = rng.integers(1, 4), rng.integers(3, 6), rng.uniform(50, 250, 3)
    place = np.arange(16)[None, :] + speed * np.arange(num_frames)[:, None]
    wave = 0.5 + 0.5 * np.sin(place / width)
    return np.broadcast_to(wave[:, None, :, None] * colour, (num_frames, 16, 16, 3)).astype(np.uint8)


def train(folder: Path, cfg: CodecConfig = TINY, steps: int = 6) -> dict[str, torch.Tensor]:
    return read_tensors(codec.train(cfg, folder, steps=steps, clips=stripes, held_out=stripes))


def test_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    # a constant rate: the cosine follows the budget, and the two sittings have different ones
    cfg = replace(TINY, optim=replace(TINY.optim, decay_from=1.0))
    whole = train(tmp_path / "whole", cfg)
    train(tmp_path / "parts", cfg, steps=3)
    parts = train(tmp_path / "parts", cfg)
    assert whole.keys() == parts.keys() and len(whole) > 20
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def test_an_interrupted_run_is_saved_and_not_calibrated(tmp_path):
    def interrupting(index: int, num_frames: int) -> np.ndarray:
        if index == TINY.pool + 2:  # the clip that comes in at the end of the third step
            os.kill(os.getpid(), signal.SIGINT)
        return stripes(index, num_frames)

    assert codec.train(TINY, tmp_path, steps=6, clips=interrupting, held_out=stripes) == tmp_path
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert not (tmp_path / "weights").exists() and not list((tmp_path / "samples").iterdir())
    train(tmp_path)  # and it goes on


def test_training_beats_the_linear_start(tmp_path):
    cfg = replace(TINY, ema_decay=0.9, size_weight=0.0, max_noise=0.0)
    train(tmp_path / "start", cfg, steps=1)
    train(tmp_path / "end", cfg, steps=60)

    def held_out(folder: Path) -> float:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return next(line["held_out_psnr"] for line in reversed(lines) if "held_out_psnr" in line)

    assert held_out(tmp_path / "end") > held_out(tmp_path / "start") + 1
    assert list((tmp_path / "end" / "samples").glob("*.png"))


def test_a_pool_depends_on_the_step_alone():
    walked = ClipPool(stripes, 4, 0)
    for _ in range(7):
        walked.advance()
    fresh = ClipPool(stripes, 4, 7)
    for a, b in zip(walked.frames, fresh.frames):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(walked.frames[0], ClipPool(stripes, 4, 0).frames[0])


def test_loss_of_a_constant_error_is_known():
    video = torch.zeros(1, 5, 3, 8, 8)
    error = 0.1
    expected = (error**2 + 1e-4) ** 0.5 + 5 * error**2  # no differences
    assert codec.reconstruction_loss(video + error, video).item() == pytest.approx(expected, rel=1e-5)


def test_loss_counts_differences_in_every_direction():
    ramp = torch.arange(4.0) * 0.1
    flat = torch.zeros(1, 4, 3, 4, 4)
    along = {3: (4, 1), 4: (4,), 1: (4, 1, 1, 1)}  # axis -> shape that puts the ramp there
    base = (ramp.square() + 1e-4).sqrt().mean() + 5 * ramp.square().mean()
    for axis, weight in ((4, 0.5), (3, 0.5), (1, 0.25)):
        loss = codec.reconstruction_loss(flat + ramp.view(along[axis]), flat)
        torch.testing.assert_close(loss, base + weight * 0.1)


def test_noise_has_one_level_per_clip_up_to_the_largest():
    noise = codec.draw_noise((400, 2, 4, 8, 8), 0.1, torch.Generator().manual_seed(0))
    levels = noise.flatten(1).std(1)
    assert levels.max() < 0.115 and levels.min() < 0.001
    assert levels.mean().item() == pytest.approx(0.1 / 3, rel=0.15)  # the mean of a squared uniform


def test_muon_of_a_one_tap_convolution_is_muon_of_its_matrix():
    rng = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(6, 4, generator=rng), torch.randn(6, 4, generator=rng)
    matrix, kernel = start.clone().requires_grad_(), start.clone().view(6, 4, 1, 1).requires_grad_()
    one, two = Muon([matrix], 0.1, 0.9), ConvMuon([kernel], 0.1, 0.9)
    for scale in (1.0, -0.3):
        matrix.grad, kernel.grad = gradient * scale, gradient.view(6, 4, 1, 1) * scale
        one.step()
        two.step()
    torch.testing.assert_close(kernel.flatten(1), matrix)
    assert (matrix - start).abs().max() > 0.01


def test_calibration_normalises_and_leaves_the_pictures_alone():
    network = VistaAutoencoder(TINY.model)
    videos = [codec.video_from_frames([stripes(index, 9)]) for index in range(6)]
    network.start_from_principal_components(torch.cat([codec.groups_from_video(video) for video in videos]))
    before = VistaCodec(network).decode(VistaCodec(network).encode(videos[0]))
    codec.calibrate(network, videos)
    calibrated = VistaCodec(network)
    latents = torch.cat([calibrated.encode(video) for video in videos]).movedim(2, 0).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(4), rtol=0, atol=1e-4)
    assert latents.std(1).square().mean() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(calibrated.decode(calibrated.encode(videos[0])), before, rtol=0, atol=1e-4)


def test_channels_are_as_large_as_they_count_in_the_picture():
    network = VistaAutoencoder(TINY.model)
    videos = [0.3 * codec.video_from_frames([stripes(index, 9)]) for index in range(6)]
    network.start_from_principal_components(torch.cat([codec.groups_from_video(video) for video in videos]))
    codec.calibrate(network, videos)  # nothing is near the ends of the scale, where pixels would be cut off
    # the decoder is still linear: what a unit of a channel changes is the length of its component
    components = (network.expand.weight[:, :, 0, 0] * network.latent_std).detach()
    gains = components.norm(dim=0)
    latents = torch.cat([VistaCodec(network).encode(video) for video in videos]).movedim(2, 0).flatten(1)
    sizes = latents.std(1)
    expected = (gains * sizes) ** codec.DETAIL_POWER  # of a normalised channel
    expected = expected / expected.square().mean().sqrt()
    torch.testing.assert_close(sizes, expected, rtol=0.05, atol=0)
    assert sizes.max() > 1.5 * sizes.min()
