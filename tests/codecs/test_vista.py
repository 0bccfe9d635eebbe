"""The Vista codec: pieces equal the whole and the training path, causality, the linear start, files."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from causvid.codecs import Codec
from causvid.codecs.vista import VistaAutoencoder, VistaCodec, VistaCodecConfig, groups_from_video, video_from_groups
from causvid.errors import UserError

TINY = VistaCodecConfig(4, (8, 8, 12), (1, 1, 2), (8, 12, 12), (2, 1, 1))


def random_network(seed=0):
    """Every weight away from zero, also those that training starts at zero: otherwise nothing deep would be tested."""
    rng = torch.Generator().manual_seed(seed)
    network = VistaAutoencoder(TINY)
    for parameter in network.parameters():
        fan_in = parameter[0].numel() if parameter.ndim == 4 else 4
        nn.init.normal_(parameter, std=fan_in**-0.5, generator=rng)
    network.latent_mean.copy_(torch.linspace(-1, 1, 4))
    network.latent_std.copy_(torch.linspace(0.5, 2, 4))
    return network


@pytest.fixture(scope="module")
def codec():
    return VistaCodec(random_network())


def example_video(num_frames, seed=0, batch=1):
    return torch.rand(batch, num_frames, 3, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def example_latents(num_frames, seed=0, batch=1):
    return torch.randn(batch, num_frames, 4, 2, 3, generator=torch.Generator().manual_seed(seed)) * 0.3


def in_pieces(stream, clip, sizes):
    return torch.cat([stream(piece) for piece in clip.split(sizes, dim=1)], dim=1)


def test_it_is_a_codec(codec):
    assert isinstance(codec, Codec)
    assert codec.encode(example_video(9, batch=2)).shape == (2, 3, 4, 2, 3)
    assert codec.decode(example_latents(3, batch=2)).shape == (2, 9, 3, 16, 24)


@pytest.mark.parametrize("sizes", [[1, 4, 4, 12], [5, 16], [13, 8]])
def test_encoding_in_pieces_equals_the_whole(codec, sizes):
    video = example_video(21)
    assert torch.equal(in_pieces(codec.encode_stream(), video, sizes), codec.encode(video))


@pytest.mark.parametrize("sizes", [[1] * 6, [3, 3], [1, 5]])
def test_decoding_in_pieces_equals_the_whole(codec, sizes):
    latents = example_latents(6)
    assert torch.equal(in_pieces(codec.decode_stream(), latents, sizes), codec.decode(latents))


def test_streams_equal_the_stacked_groups_that_training_sees(codec):
    video, latents, network = example_video(17, batch=2), example_latents(5, batch=2), codec.network
    with torch.no_grad():
        stacked_latents, _ = network.encode(groups_from_video(video), [])
        groups, _ = network.decode(latents, [])
    torch.testing.assert_close(codec.encode(video), stacked_latents, rtol=0, atol=2e-5)
    torch.testing.assert_close(codec.decode(latents), video_from_groups(groups).clamp(-1, 1), rtol=0, atol=2e-5)
    assert stacked_latents.std() > 0.1 and 0.1 < groups.std() < 2


def test_groups_and_video_are_inverse():
    video = example_video(13)
    assert torch.equal(video_from_groups(groups_from_video(video)), video)


def test_the_future_changes_nothing(codec):
    video, latents = example_video(13), example_latents(4)
    other_video, other_latents = video.clone(), latents.clone()
    other_video[:, 9:] *= -1
    other_latents[:, 3:] *= -1
    encoded, other_encoded = codec.encode(video), codec.encode(other_video)
    decoded, other_decoded = codec.decode(latents), codec.decode(other_latents)
    assert torch.equal(encoded[:, :3], other_encoded[:, :3]) and not torch.equal(encoded[:, 3], other_encoded[:, 3])
    assert torch.equal(decoded[:, :9], other_decoded[:, :9]) and not torch.equal(decoded[:, 9:], other_decoded[:, 9:])


def test_the_past_is_remembered(codec):
    """The same group after another past becomes another latent, and the same latent another picture."""
    video, latents = example_video(9), example_latents(3)
    other_video, other_latents = video.clone(), latents.clone()
    other_video[:, :5] *= -1
    other_latents[:, :2] *= -1
    assert not torch.equal(codec.encode(video)[:, 2], codec.encode(other_video)[:, 2])
    assert not torch.equal(codec.decode(latents)[:, 5:], codec.decode(other_latents)[:, 5:])


def test_two_streams_at_once_and_going_back(codec):
    a, b = example_latents(4, seed=1), example_latents(4, seed=2)
    one, two = codec.decode_stream(), codec.decode_stream()
    shown = [(one(x), two(y)) for x, y in zip(a.split(2, dim=1), b.split(2, dim=1))]
    assert torch.equal(torch.cat([x for x, _ in shown], dim=1), codec.decode(a))
    assert torch.equal(torch.cat([y for _, y in shown], dim=1), codec.decode(b))

    stream = codec.encode_stream()
    video = example_video(13)
    stream(video[:, :5])
    state = stream.save()
    first = stream(video[:, 5:])
    stream.load(state)
    assert torch.equal(stream(video[:, 5:]), first)


def test_pieces_that_do_not_fill_latents_are_refused(codec):
    stream = codec.encode_stream()
    with pytest.raises(ValueError, match="1 \\+ 4k"):
        stream(example_video(4))
    stream(example_video(1))
    with pytest.raises(ValueError, match="multiples of 4"):
        stream(example_video(5))


def test_the_linear_start_loses_exactly_the_components_it_drops():
    rng = torch.Generator().manual_seed(0)
    groups = torch.randn(2, 5, 12, 32, 24, generator=rng, dtype=torch.float64).cumsum(2).cumsum(4)
    network = VistaAutoencoder(TINY).double()
    network.start_from_principal_components(groups)
    with torch.no_grad():
        raw = network.project(groups.flatten(0, 1))
        restored, _ = network.decode(raw.unflatten(0, (2, 5)), [])
    patches = nn.functional.pixel_unshuffle(groups.flatten(0, 1), 8).movedim(1, -1).flatten(0, -2)
    lost = torch.linalg.svdvals(patches - patches.mean(0))[TINY.latent_channels :].square().sum()
    torch.testing.assert_close((restored - groups).square().sum(), lost)
    per_channel = raw.movedim(1, 0).flatten(1)
    torch.testing.assert_close(per_channel @ per_channel.T / per_channel.shape[1], torch.eye(4, dtype=torch.float64))


def test_a_saved_codec_is_the_same_codec(codec, tmp_path):
    path = tmp_path / "codec.safetensors"
    codec.save(path, torch.float32)
    again = VistaCodec.load(path, torch.float32)
    video = example_video(9)
    assert again.network.cfg == TINY
    assert torch.equal(again.encode(video), codec.encode(video))
    assert VistaCodec.load(path).dtype == torch.bfloat16


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a Vista codec"):
        VistaCodec.load(path)
