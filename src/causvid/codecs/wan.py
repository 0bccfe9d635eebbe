"""The published Wan2.1 and Wan2.2 video autoencoders, run through diffusers' AutoencoderKLWan (extra `wan`).

diffusers offers no streaming call, but its encoder and decoder take their feature cache as an argument. So each stream
here owns one cache, and whole clips run through the same streams: pieces equal the whole by construction.

Precision: the default is bfloat16, also on CPU, where float32 3-D convolutions are so slow that a whole decode takes
five times as long. Ask for float32 to match the original Wan code closely. Latents and video always come out in
float32: normalisation and the clamp to [-1, 1] are done there, as in the original.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from causvid.codecs.grouping import frame_groups
from causvid.errors import UserError
from causvid.shapes import Latents, Video
from causvid.tensor_files import load_strictly, read_tensors

# AutoencoderKLWan's defaults are the Wan2.1 autoencoder, latent statistics included.
WAN21_CONFIG: dict[str, Any] = {}

# fmt: off
_WAN22_MEAN = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
]
_WAN22_STD = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
]
# fmt: on

# The autoencoder of Wan2.2 TI2V-5B: 2x2 pixel patches, residual samplers, 48 channels (released Wan2.2 configuration).
WAN22_CONFIG: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": _WAN22_MEAN,
    "latents_std": _WAN22_STD,
}


class WanCodec:
    """A Wan autoencoder as a codec: frozen weights, latent statistics, and streams that hold their own cache."""

    def __init__(self, vae: Any) -> None:
        config = vae.config
        self.vae = vae.eval().requires_grad_(False)
        self.patch_size: int = config.patch_size or 1
        self.latent_channels: int = config.z_dim
        self.space_factor: int = 2 ** (len(config.dim_mult) - 1) * self.patch_size
        self.time_factor: int = 2 ** sum(config.temperal_downsample)
        self.dtype: torch.dtype = vae.dtype
        self.device: torch.device = vae.device
        self.mean = torch.tensor(config.latents_mean, device=self.device)[:, None, None]
        self.std = torch.tensor(config.latents_std, device=self.device)[:, None, None]

    @classmethod
    def from_folder(
        cls, folder: Path, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
    ) -> "WanCodec":
        """From a model in diffusers' layout: the folder that has `vae/` in it, or that `vae/` folder itself."""
        folder = folder / "vae" if (folder / "vae").is_dir() else folder
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} holds no config.json; give a model folder in diffusers' layout.")
        shards = sorted(folder.glob("*.safetensors"))
        if not shards:
            raise UserError(f"{folder} holds no .safetensors file; download the autoencoder's weights into it.")
        config = json.loads((folder / "config.json").read_text())
        state = {name: tensor for shard in shards for name, tensor in read_tensors(shard).items()}
        return cls._load(config, state, str(folder), dtype, device)

    @classmethod
    def from_original(
        cls, file: Path, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
    ) -> "WanCodec":
        """From the Wan project's own `Wan2.1_VAE.pth` or `Wan2.2_VAE.pth` (or its names in a .safetensors file)."""
        state = diffusers_from_original(read_tensors(file))
        is_residual = any(name.startswith("encoder.down_blocks.0.resnets.") for name in state)
        return cls._load(WAN22_CONFIG if is_residual else WAN21_CONFIG, state, str(file), dtype, device)

    @classmethod
    def random(cls, config: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32) -> "WanCodec":
        """Random weights for an AutoencoderKLWan configuration: the right shapes and speed, meaningless pictures."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vae = _autoencoder_class().from_config(config)
        return cls(
            nn.Module.to(vae, dtype)
        )  # diffusers' own `to` warns about a cast, even of weights that have no past

    @classmethod
    def _load(
        cls,
        config: dict[str, Any],
        state: dict[str, Tensor],
        source: str,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> "WanCodec":
        autoencoder_class = _autoencoder_class()
        with torch.device("meta"):
            vae = autoencoder_class.from_config(config)
        load_strictly(vae, {name: tensor.to(device, dtype) for name, tensor in state.items()}, source)
        return cls(vae)

    def to(self, device: torch.device | str) -> "WanCodec":
        """Move the weights; streams that are running keep their history where it was, so start new ones."""
        return type(self)(self.vae.to(device))

    def encode(self, video: Video) -> Latents:
        return self.encode_stream()(video)

    def decode(self, latents: Latents) -> Video:
        return self.decode_stream()(latents)

    def encode_stream(self) -> "WanEncodeStream":
        return WanEncodeStream(self)

    def decode_stream(self) -> "WanDecodeStream":
        return WanDecodeStream(self)


class _WanStream:
    """One direction of one clip: a slot per causal convolution, None before the first frame, never written in place.

    Slots hold tensors or the mark "Rep" (an upsampler that has seen only the first frame), so a copy of the list is a
    snapshot. The network gets a copy too: a call that fails leaves the history as it was.
    """

    def __init__(self, codec: WanCodec, network: nn.Module) -> None:
        self.codec = codec
        self.cache: list[Any] = [None] * sum(isinstance(module, nn.Conv3d) for module in network.modules())

    def save(self) -> list[Any]:
        return list(self.cache)

    def load(self, state: list[Any]) -> None:
        self.cache = list(state)


class WanEncodeStream(_WanStream):
    """Video pieces to latents: the distribution's mean, normalised; nothing is sampled."""

    def __init__(self, codec: WanCodec) -> None:
        super().__init__(codec, codec.vae.encoder)

    @torch.no_grad()
    def __call__(self, piece: Video) -> Latents:
        codec, cache = self.codec, list(self.cache)
        means = []
        for group in frame_groups(piece, cache[0] is not None, codec.time_factor, codec.space_factor):
            x = group.to(codec.device, codec.dtype)
            x = rearrange(x, "b t c (h p) (w q) -> b (c q p) t h w", p=codec.patch_size, q=codec.patch_size)
            moments = codec.vae.quant_conv(codec.vae.encoder(x, feat_cache=cache, feat_idx=[0]))
            means.append(rearrange(moments.chunk(2, dim=1)[0], "b c t h w -> b t c h w").float())
        self.cache = cache
        return (torch.cat(means, dim=1) - codec.mean) / codec.std


class WanDecodeStream(_WanStream):
    """Latent pieces to video: the first latent frame of a clip gives one pixel frame, every later one four.

    The first frame follows the offline rule: temporal upsamplers let it pass, and start from zeros at the second one.
    """

    def __init__(self, codec: WanCodec) -> None:
        super().__init__(codec, codec.vae.decoder)

    @torch.no_grad()
    def __call__(self, piece: Latents) -> Video:
        codec, cache = self.codec, list(self.cache)
        pixels = []
        for frame in (piece.to(codec.device).float() * codec.std + codec.mean).split(1, dim=1):
            z = rearrange(frame.to(codec.dtype), "b t c h w -> b c t h w")
            x = codec.vae.post_quant_conv(z)
            x = codec.vae.decoder(x, feat_cache=cache, feat_idx=[0], first_chunk=cache[0] is None)
            x = rearrange(x, "b (c q p) t h w -> b t c (h p) (w q)", p=codec.patch_size, q=codec.patch_size)
            pixels.append(x.float().clamp(-1, 1))
        self.cache = cache
        return torch.cat(pixels, dim=1)


# Names of the original files, in the order in which they are rewritten to diffusers' names.
_RENAMES = [
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"^(encoder|decoder)\.head\.0\.", r"\1.norm_out."),
    (r"^(encoder|decoder)\.head\.2\.", r"\1.conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
    # Wan2.2 nests its levels as diffusers does: residual blocks, then one sampler.
    (r"^encoder\.downsamples\.(\d+)\.downsamples\.\d+\.(?=resample|time_conv)", r"encoder.down_blocks.\1.downsampler."),
    (r"^decoder\.upsamples\.(\d+)\.upsamples\.\d+\.(?=resample|time_conv)", r"decoder.up_blocks.\1.upsampler."),
    (r"^encoder\.downsamples\.(\d+)\.downsamples\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"^decoder\.upsamples\.(\d+)\.upsamples\.(\d+)\.", r"decoder.up_blocks.\1.resnets.\2."),
    # Wan2.1 numbers its levels through; diffusers keeps that in the encoder only.
    (r"^encoder\.downsamples\.(\d+)\.", r"encoder.down_blocks.\1."),
]


def diffusers_from_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under diffusers' names. Names this does not know pass unchanged, for the strict load to tell."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        if level := re.match(r"decoder\.upsamples\.(\d+)\.(.*)", name):
            # Each decoder level of Wan2.1 is three residual blocks and, but for the last, an upsampler.
            block, position = divmod(int(level[1]), 4)
            part = "upsamplers.0" if position == 3 else f"resnets.{position}"
            name = f"decoder.up_blocks.{block}.{part}.{level[2]}"
        renamed[name] = tensor
    return renamed


def _autoencoder_class() -> Any:
    try:
        from diffusers import AutoencoderKLWan
    except ImportError as error:
        raise UserError("the Wan autoencoder needs diffusers; run `pip install 'causvid[wan]'`.") from error
    return AutoencoderKLWan
