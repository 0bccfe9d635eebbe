"""A small, fast codec that loads the published TAEHV-family weights for Wan: `taew2_1` (16 channels), `taew2_2` (48).

The network is 2-D convolutions over stacked frames; the only memory in time is MemBlock's, which sees the frame before.
Conventions of those weights, and what this file makes of them:

1. they hold pixels in [0, 1]; ours are in [-1, 1], so both ends convert;
2. they read and write the latents that the diffusion model uses, that is Wan's latents *after* normalisation by the
   published mean and std. So latents pass between this codec and WanCodec with no scaling;
3. the decoder makes 4 frames of every latent frame, and the first 3 of a clip are dropped: the first latent frame gives
   1 pixel frame. The encoder is run with the same alignment: the first pixel frame is repeated 4 times. (The code these
   weights come with pads a clip at its end instead; that would let a latent frame see pixels of the future.)
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causvid.codecs.grouping import frame_groups
from causvid.errors import UserError
from causvid.shapes import Latents, Video
from causvid.tensor_files import load_strictly, read_tensors

TIME_FACTOR = 4


def conv3x3(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


class SoftClamp(nn.Module):
    """Keeps latents within about 3 standard deviations."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class MemBlock(nn.Module):
    """A residual block over a frame and its predecessor at the same depth."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv3x3(2 * width, width), nn.ReLU(), conv3x3(width, width), nn.ReLU(), conv3x3(width, width)
        )

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return F.relu(self.conv(torch.cat([x, before], dim=1)) + x)


class TimePool(nn.Module):
    """`stride` consecutive frames become one."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.reshape(-1, self.stride * x.shape[1], *x.shape[2:]))


class TimeGrow(nn.Module):
    """One frame becomes `stride` consecutive frames."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(-1, *x.shape[1:])


class TinyAutoencoder(nn.Module):
    """The network. Positions in the two sequences are the names in the published files: do not renumber."""

    def __init__(self, latent_channels: int = 16, patch_size: int = 1) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.patch_size = patch_size
        pixels = 3 * patch_size**2
        encoder: list[nn.Module] = [conv3x3(pixels, 64), nn.ReLU()]
        for time_stride in (2, 2, 1):
            encoder += [TimePool(64, time_stride), conv3x3(64, 64, stride=2, bias=False)]
            encoder += [MemBlock(64) for _ in range(3)]
        self.encoder = nn.Sequential(*encoder, conv3x3(64, latent_channels))

        decoder: list[nn.Module] = [SoftClamp(), conv3x3(latent_channels, 256), nn.ReLU()]
        for width, next_width, time_stride in ((256, 128, 1), (128, 64, 2), (64, 64, 2)):
            decoder += [MemBlock(width) for _ in range(3)]
            decoder += [nn.Upsample(scale_factor=2), TimeGrow(width, time_stride)]
            decoder += [conv3x3(width, next_width, bias=False)]
        self.decoder = nn.Sequential(*decoder, nn.ReLU(), conv3x3(64, pixels))


Memory = list[Tensor | None]  # per layer: the last frame a MemBlock saw, [B, C, H, W]


def run_frames(layers: Iterable[nn.Module], x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """Consecutive frames [B, T, C, H, W] through the layers; returns the result and the memory for the next frames."""
    batch, after = len(x), list(memory)
    x = x.flatten(0, 1)  # [B*T, C, H, W]; T shrinks and grows on the way
    for index, layer in enumerate(layers):
        if isinstance(layer, MemBlock):
            frames = x.unflatten(0, (batch, -1))
            last = memory[index]
            first_before = torch.zeros_like(frames[:, 0]) if last is None else last
            before = torch.cat([first_before[:, None], frames[:, :-1]], dim=1)
            after[index] = frames[:, -1].clone()
            x = layer(x, before.flatten(0, 1))
        else:
            x = layer(x)
    return x.unflatten(0, (batch, -1)), after


class TinyCodec:
    """The small network as a codec. Whole clips run through the streams, so pieces equal the whole exactly."""

    time_factor: int = TIME_FACTOR

    def __init__(self, network: TinyAutoencoder) -> None:
        self.network = network.eval().requires_grad_(False)
        self.latent_channels = network.latent_channels
        self.patch_size = network.patch_size
        self.space_factor = 8 * network.patch_size
        weight = next(network.parameters())
        self.dtype = weight.dtype
        self.device = weight.device

    @classmethod
    def from_file(
        cls, file: Path, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
    ) -> "TinyCodec":
        """From `taew2_1` or `taew2_2` weights, .pth or .safetensors; the variant is read off the tensors' shapes."""
        state = read_tensors(file)
        needed = ("encoder.0.weight", "decoder.1.weight")
        if any(name not in state or state[name].ndim != 4 for name in needed):
            raise UserError(f"{file} has no tensor {needed[0]} or {needed[1]}; give a TAEHV file such as taew2_1.pth.")
        with torch.device("meta"):
            pixels, latent_channels = state[needed[0]].shape[1], state[needed[1]].shape[1]
            network = TinyAutoencoder(latent_channels, patch_size=round((pixels / 3) ** 0.5))
        load_strictly(network, {name: tensor.to(device, dtype) for name, tensor in state.items()}, str(file))
        return cls(network)

    @classmethod
    def random(cls, latent_channels: int = 16, patch_size: int = 1, seed: int = 0) -> "TinyCodec":
        """Random weights: the right shapes and speed, meaningless pictures."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(TinyAutoencoder(latent_channels, patch_size))

    def to(self, device: torch.device | str) -> "TinyCodec":
        """Move the weights; streams that are running keep their history where it was, so start new ones."""
        return type(self)(self.network.to(device))

    def encode(self, video: Video) -> Latents:
        return self.encode_stream()(video)

    def decode(self, latents: Latents) -> Video:
        return self.decode_stream()(latents)

    def encode_stream(self) -> "TinyEncodeStream":
        return TinyEncodeStream(self)

    def decode_stream(self) -> "TinyDecodeStream":
        return TinyDecodeStream(self)


class _TinyStream:
    """One direction of one clip: whether it has started, and the memory of its layers, never written in place."""

    def __init__(self, codec: TinyCodec, layers: nn.Sequential) -> None:
        self.codec = codec
        self.layers = layers
        self.started = False
        self.memory: Memory = [None] * len(layers)

    def save(self) -> list[Any]:
        return [self.started, *self.memory]

    def load(self, state: list[Any]) -> None:
        self.started, *self.memory = state


class TinyEncodeStream(_TinyStream):
    """Video pieces to normalised latents."""

    def __init__(self, codec: TinyCodec) -> None:
        super().__init__(codec, codec.network.encoder)

    @torch.no_grad()
    def __call__(self, piece: Video) -> Latents:
        codec, memory = self.codec, self.memory
        latents = []
        for group in frame_groups(piece, self.started, codec.time_factor, codec.space_factor):
            x = (group.to(codec.device, codec.dtype) + 1) / 2
            x = F.pixel_unshuffle(x, codec.patch_size)
            x = x.expand(-1, codec.time_factor, -1, -1, -1)  # the first frame of a clip fills its group alone
            latent, memory = run_frames(self.layers, x, memory)
            latents.append(latent.float())
        self.started, self.memory = True, memory
        return torch.cat(latents, dim=1)


class TinyDecodeStream(_TinyStream):
    """Normalised latent pieces to video."""

    def __init__(self, codec: TinyCodec) -> None:
        super().__init__(codec, codec.network.decoder)

    @torch.no_grad()
    def __call__(self, piece: Latents) -> Video:
        codec, memory = self.codec, self.memory
        pixels = []
        for frame in piece.to(codec.device, codec.dtype).split(1, dim=1):
            frames, memory = run_frames(self.layers, frame, memory)
            pixels.append(F.pixel_shuffle(frames, codec.patch_size).float().clamp(0, 1) * 2 - 1)
        if not self.started:
            pixels[0] = pixels[0][:, codec.time_factor - 1 :]
        self.started, self.memory = True, memory
        return torch.cat(pixels, dim=1)
