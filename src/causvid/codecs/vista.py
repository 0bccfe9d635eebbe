"""The Vista codec: a causal video autoencoder, 4x in time and 8x in space, that runs in real time on a CPU.

Everything happens in groups of four pixel frames, one group per latent frame. A group is one picture of 4*3 channels,
so the network is 2-D convolutions only, and time enters in one place: a *remembering* block also reads what its input
was one group earlier. What those blocks read last is the whole state of a stream.

The rule for the start of a clip: the first pixel frame alone makes the first latent frame. The encoder sees it as a
group of four copies, the first three frames that the decoder makes of it are dropped, and what came before is zeros.

Latents have mean 0, and each channel the deviation with which it counts in the picture (stages/codec.py), by statistics
that are kept with the weights.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import as_file, files
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causvid import config
from causvid.atomic import all_or_nothing
from causvid.codecs.grouping import frame_groups
from causvid.errors import UserError
from causvid.shapes import Latents, Video
from causvid.tensor_files import load_strictly, read_file, write_tensors

TIME_FACTOR = 4
SPACE_FACTOR = 8
GROUP_CHANNELS = 3 * TIME_FACTOR
DECODING = ("decoder.", "expand.")  # names of what turns latents into pictures begin with these

Memory = list[Tensor]  # the last input [B, C, H, W] of every remembering block, in order; empty before the first group


@dataclass(frozen=True)
class VistaCodecConfig:
    """Three levels each, from half the resolution down to an eighth: their widths and how many blocks they have."""

    latent_channels: int
    encoder_widths: tuple[int, int, int]
    encoder_blocks: tuple[int, int, int]
    decoder_widths: tuple[int, int, int]
    decoder_blocks: tuple[int, int, int]


PACKAGED = VistaCodecConfig(
    latent_channels=16,
    encoder_widths=(32, 96, 160),
    encoder_blocks=(1, 1, 1),
    decoder_widths=(48, 128, 192),
    decoder_blocks=(3, 3, 1),
)


def silent(conv: nn.Conv2d) -> nn.Conv2d:
    """Starts at zero, so that what it is added to is what training starts from."""
    assert conv.bias is not None
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


class Block(nn.Module):
    """A residual block. A remembering one reads the group before beside the present one; None stands for zeros."""

    def __init__(self, width: int, remembers: bool) -> None:
        super().__init__()
        self.remembers = remembers
        self.read = nn.Conv2d(width * (2 if remembers else 1), width, 3, padding=1)
        self.write = silent(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor, before: Tensor | None) -> Tensor:
        seen = x if before is None else torch.cat([x, before], dim=1)
        weight = self.read.weight[:, : seen.shape[1]]
        return x + self.write(F.relu(F.conv2d(F.relu(seen), weight, self.read.bias, padding=1)))


def blocks(width: int, count: int) -> Iterator[Block]:
    """One level: its first block remembers."""
    return (Block(width, remembers=index == 0) for index in range(count))


def encoder_layers(cfg: VistaCodecConfig) -> Iterator[nn.Module]:
    widths = cfg.encoder_widths
    yield nn.PixelUnshuffle(2)
    yield nn.Conv2d(GROUP_CHANNELS * 4, widths[0], 3, padding=1)
    yield from blocks(widths[0], cfg.encoder_blocks[0])
    for (finer, width), count in zip(pairwise(widths), cfg.encoder_blocks[1:]):
        yield nn.Conv2d(finer, width, 2, stride=2)
        yield from blocks(width, count)
    yield silent(nn.Conv2d(widths[-1], cfg.latent_channels, 1))


def decoder_layers(cfg: VistaCodecConfig) -> Iterator[nn.Module]:
    widths, counts = cfg.decoder_widths[::-1], cfg.decoder_blocks[::-1]
    yield nn.Conv2d(cfg.latent_channels, widths[0], 3, padding=1)
    yield from blocks(widths[0], counts[0])
    for (coarser, width), count in zip(pairwise(widths), counts[1:]):
        yield nn.Conv2d(coarser, width * 4, 1)
        yield nn.PixelShuffle(2)
        yield from blocks(width, count)
    yield nn.ReLU()
    yield silent(nn.Conv2d(widths[-1], GROUP_CHANNELS * 4, 3, padding=1))
    yield nn.PixelShuffle(2)


class VistaAutoencoder(nn.Module):
    """The network, over groups: pixels [B, T, 12, H, W] <-> latents [B, T, C, h, w].

    Either half is a linear map of 8x8 patches plus a deep chain. The linear maps start as the principal components of
    patches and the chains at zero, so training starts where linear coding ends.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, cfg: VistaCodecConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.project = nn.Conv2d(GROUP_CHANNELS, cfg.latent_channels, SPACE_FACTOR, stride=SPACE_FACTOR)
        self.encoder = nn.ModuleList(encoder_layers(cfg))
        self.register_buffer("latent_mean", torch.zeros(cfg.latent_channels))
        self.register_buffer("latent_std", torch.ones(cfg.latent_channels))
        self.decoder = nn.ModuleList(decoder_layers(cfg))
        self.expand = nn.Conv2d(cfg.latent_channels, GROUP_CHANNELS * SPACE_FACTOR**2, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub does not know it

    def encode(self, groups: Tensor, memory: Memory) -> tuple[Latents, Memory]:
        x, batch = stacked(groups), len(groups)
        deep, memory = run_groups(self.encoder, x, batch, memory)
        raw = self.project(x) + deep
        latents = (raw.float() - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]
        return latents.unflatten(0, (batch, -1)), memory

    def decode(self, latents: Latents, memory: Memory) -> tuple[Tensor, Memory]:
        raw = latents * self.latent_std[:, None, None] + self.latent_mean[:, None, None]
        x, batch = stacked(raw.to(self.expand.weight.dtype)), len(latents)
        deep, memory = run_groups(self.decoder, x, batch, memory)
        groups = F.pixel_shuffle(self.expand(x), SPACE_FACTOR) + deep
        return groups.unflatten(0, (batch, -1)), memory

    @torch.no_grad()
    def start_from_principal_components(self, groups: Tensor) -> None:
        """Set the linear maps from example groups [B, T, 12, H, W]; their latents get unit variance."""
        patches = F.pixel_unshuffle(groups.flatten(0, 1), SPACE_FACTOR).movedim(1, -1).flatten(0, -2).double()
        mean = patches.mean(0)
        variances, directions = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        scale = variances[-self.cfg.latent_channels :].sqrt()
        kept = directions[:, -self.cfg.latent_channels :]  # [patch, C]
        assert self.project.bias is not None and self.expand.bias is not None
        self.project.weight.copy_((kept / scale).T.reshape(self.project.weight.shape))
        self.project.bias.copy_(-(kept / scale).T @ mean)
        self.expand.weight.copy_((kept * scale)[..., None, None])
        self.expand.bias.copy_(mean)

    def start_from(self, other: "VistaAutoencoder") -> None:
        """The same latents and pictures as another's, from which more blocks may go on: those it lacks do nothing."""
        for mine, theirs in zip(levels(self.decoder), levels(other.decoder), strict=True):
            for layer, finished in zip(mine, theirs):
                layer.load_state_dict(finished.state_dict())
        shared = {name: value for name, value in other.state_dict().items() if not name.startswith("decoder.")}
        self.load_state_dict({**self.state_dict(), **shared})


def levels(layers: nn.ModuleList) -> list[list[nn.Module]]:
    """Layers as runs of blocks, and of what stands between those."""
    return [list(run) for _, run in groupby(layers, lambda layer: isinstance(layer, Block))]


def stacked(x: Tensor) -> Tensor:
    """[B, T, C, H, W] -> [B*T, C, H, W], in the memory layout that convolutions are fastest in."""
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def run_groups(layers: nn.ModuleList, x: Tensor, batch: int, memory: Memory) -> tuple[Tensor, Memory]:
    """Consecutive groups [B*T, C, H, W] through the layers; returns the result and the memory for the next groups."""
    past, after = iter(memory), []
    for layer in layers:
        if not isinstance(layer, Block):
            x = layer(x)
        elif not layer.remembers:
            x = layer(x, None)
        else:
            groups = x.unflatten(0, (batch, -1))
            after.append(groups[:, -1].clone())
            before = None  # a stream begins with one group
            if memory or groups.shape[1] > 1:
                first = next(past) if memory else torch.zeros_like(groups[:, 0])
                before = stacked(torch.cat([first[:, None], groups[:, :-1]], dim=1))
            x = layer(x, before)
    return x, after


def groups_from_video(video: Video) -> Tensor:
    """A whole clip of 1 + 4k frames as groups [B, 1 + k, 12, H, W]; the first frame fills its group alone."""
    filled = torch.cat([video[:, :1].expand(-1, TIME_FACTOR - 1, -1, -1, -1), video], dim=1)
    return filled.unflatten(1, (-1, TIME_FACTOR)).flatten(2, 3)


def video_from_groups(groups: Tensor) -> Video:
    """The way back: frames of groups that begin a clip, without the copies of the first."""
    return groups.unflatten(2, (TIME_FACTOR, 3)).flatten(1, 2)[:, TIME_FACTOR - 1 :]


class VistaCodec:
    """The network as a codec. Whole clips run through the streams, so pieces equal the whole exactly."""

    time_factor: int = TIME_FACTOR
    space_factor: int = SPACE_FACTOR

    def __init__(self, network: VistaAutoencoder) -> None:
        self.network = network.eval().requires_grad_(False)
        self.latent_channels = network.cfg.latent_channels
        self.dtype = network.expand.weight.dtype
        self.device = network.expand.weight.device

    @classmethod
    def load(cls, path: Path, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu") -> "VistaCodec":
        """From a file that `save` wrote. bfloat16 is several times faster than float32 where the CPU has it."""
        state, about = read_file(path)
        if "config" not in about:
            raise UserError(f"{path} is not a Vista codec (its metadata has no 'config'); give codec.safetensors.")
        cfg = config.from_json(VistaCodecConfig, json.loads(about["config"]), source=str(path))
        network = VistaAutoencoder(cfg)
        load_strictly(network, state, str(path))
        network.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # as above
        return cls(network)

    @classmethod
    def load_packaged(cls, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu") -> "VistaCodec":
        """The one that ships with the package."""
        with as_file(files("causvid") / "weights" / "vista" / "codec.safetensors") as path:
            return cls.load(path, dtype, device)

    def save(self, path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        about = {"config": json.dumps(config.to_json(self.network.cfg))}
        with all_or_nothing(path.parent) as temporary:
            write_tensors(temporary(path.name), self.network.state_dict(), about, dtype)

    def identity(self) -> str:
        """Of its latents: a codec that differs in its decoder alone only shows them differently."""
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            if not name.startswith(DECODING):
                digest.update(name.encode() + value.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> "VistaCodec":
        """Move the weights; streams that are running keep their history where it was, so start new ones."""
        return type(self)(self.network.to(device))

    def encode(self, video: Video) -> Latents:
        return self.encode_stream()(video)

    def decode(self, latents: Latents) -> Video:
        return self.decode_stream()(latents)

    def encode_stream(self) -> "VistaEncodeStream":
        return VistaEncodeStream(self)

    def decode_stream(self) -> "VistaDecodeStream":
        return VistaDecodeStream(self)


class _VistaStream:
    """One direction of one clip, a latent frame at a time, whatever the pieces: convolutions may round differently for
    stacks of different height."""

    def __init__(self, codec: VistaCodec) -> None:
        self.codec = codec
        self.started = False
        self.memory: Memory = []

    def save(self) -> list[Any]:
        return [self.started, *self.memory]

    def load(self, state: list[Any]) -> None:
        self.started, *self.memory = state


class VistaEncodeStream(_VistaStream):
    """Video pieces to normalised latents."""

    @torch.no_grad()
    def __call__(self, piece: Video) -> Latents:
        codec, memory = self.codec, self.memory
        latents = []
        for frames in frame_groups(piece, self.started, TIME_FACTOR, SPACE_FACTOR):
            filled = frames.to(codec.device, codec.dtype).expand(-1, TIME_FACTOR, -1, -1, -1)
            latent, memory = codec.network.encode(filled.flatten(1, 2)[:, None], memory)
            latents.append(latent.float())
        self.started, self.memory = True, memory
        return torch.cat(latents, dim=1)


class VistaDecodeStream(_VistaStream):
    """Normalised latent pieces to video."""

    @torch.no_grad()
    def __call__(self, piece: Latents) -> Video:
        codec, memory = self.codec, self.memory
        pixels = []
        for latent in piece.to(codec.device, torch.float32).split(1, dim=1):
            group, memory = codec.network.decode(latent, memory)
            pixels.append(group.unflatten(2, (TIME_FACTOR, 3)).flatten(1, 2).float().clamp(-1, 1))
        if not self.started:
            pixels[0] = pixels[0][:, TIME_FACTOR - 1 :]
        self.started, self.memory = True, memory
        return torch.cat(pixels, dim=1)
