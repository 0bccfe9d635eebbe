"""VideoDiT: Wan2.1's video transformer, bidirectional and causal in one class. Teacher, critic and student are this.

Parameter names are those of the published Wan files, so that their weights load as they are. What a frame may see is
an argument of `forward`, not a property of the network:

    model(x_t, sigma, text)                    every frame sees every frame (teacher, critic)
    model(x_t, sigma, text, bounds=...)        block-causal over a whole clip (training a student)
    model(x_t, sigma, text, past=...)          one chunk, looking back at a cache (streaming)

Noise levels are per latent frame, [B, T], and modulate their frame by broadcasting.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from causvid.cache import CacheShape, Past, PastOfMany
from causvid.chunks import Span, visible_spans
from causvid.flow import timestep_features
from causvid.rope import Rotation, grid_rotation, rotate
from causvid.shapes import FrameSigma, Latents, Text

# "islands": time path, modulation, norms, residual stream and head in float32 whatever the weights are (original Wan).
# "plain": everything in the working dtype (how the published few-step students were trained and sampled).
Precision = Literal["islands", "plain"]


SCORES_IN_CACHE = 2**19  # (ours) attention scores that are quicker made for several heads at once
LOUD = 8.0  # (ours) landmarks against the noise of sixteen channels, which would drown them
MAX_SCORES = 2**25  # (ours) per product: 64 MiB in bfloat16


@dataclass(frozen=True)
class VideoDiTConfig:
    """A preset must say everything."""

    width: int
    ffn_width: int
    num_heads: int
    num_layers: int
    in_channels: int
    out_channels: int
    patch: int  # latent rows and columns per token; one frame in time
    freq_width: int
    text_width: int
    text_length: int
    eps: float
    precision: Precision
    # The last three input channels are then made here: a token's row, column and frame, which stands still after this
    # many frames. Rotations tell distances only: of pure noise no token can know whether it is the first or the last,
    # so small networks never learn to put sky above and "then night falls" at the end. 0: none, as in Wan.
    landmarks: int = 0
    # Latents that a token sees beyond each edge of its patch. What moves half a patch from frame to frame is then still
    # whole within one token. 0, as in Wan: tokens see their own patch alone.
    overlap: int = 0
    # The shares by which heads, one each, go along with a view that moves. Columns are then places in a world that goes
    # by at that speed: what stands there is found in the same place in all frames, however the view moves, as easily as
    # in a view that rests (after PRoPE, Li et al. 2025). A share is for one depth; 0 is for what goes with the view.
    # (), as in Wan: columns are of the picture.
    parallax: tuple[float, ...] = ()

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads


@dataclass(frozen=True)
class TextMemory:
    """Keys and values of a prompt for every layer, projected once: [B, Y, N, E] each."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in (*self.keys, *self.values))

    @classmethod
    def stack(cls, memories: list[TextMemory]) -> TextMemory:
        """The prompts of several streams as one batch."""
        return cls(
            tuple(torch.cat(layer) for layer in zip(*(m.keys for m in memories))),
            tuple(torch.cat(layer) for layer in zip(*(m.values for m in memories))),
        )


@runtime_checkable
class Sight(Protocol):
    """What the frames at hand may attend to."""

    def attend(self, layer: int, q_BLNE: Tensor, k_BLNE: Tensor, v_BLNE: Tensor) -> Tensor: ...


def attention(q_BLNE: Tensor, k_BMNE: Tensor, v_BMNE: Tensor) -> Tensor:
    """The one call site of attention. Faster kernels are torch's to choose."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLNE, k_BMNE, v_BMNE))
    # torch's CPU kernel gains nothing from bfloat16, matrix products do (docs/log.md, 2026-11-21)
    by_hand = q.device.type == "cpu" and q.dtype == torch.bfloat16 and not torch.is_grad_enabled()
    out = attention_by_products(q, k, v) if by_hand else F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2)


def attention_by_products(q_BNLE: Tensor, k_BNME: Tensor, v_BNME: Tensor) -> Tensor:
    """softmax(q k') v as matrix products, for as many heads and queries at a time as stay in the cache."""
    num_heads, num_queries, width = q_BNLE.shape[1:]
    num_keys = k_BNME.shape[2]
    heads = max(1, SCORES_IN_CACHE // (num_queries * num_keys))
    rows = max(1, MAX_SCORES // num_keys)
    q_BNLE = q_BNLE * width**-0.5
    out = torch.empty_like(q_BNLE)
    for n in range(0, num_heads, heads):
        k, v = k_BNME[:, n : n + heads].transpose(2, 3), v_BNME[:, n : n + heads]
        for i in range(0, num_queries, rows):
            scores = torch.matmul(q_BNLE[:, n : n + heads, i : i + rows], k)
            out[:, n : n + heads, i : i + rows] = torch.matmul(scores.softmax(-1), v)
    return out


@dataclass(frozen=True)
class SeeAll:
    def attend(self, layer: int, q_BLNE: Tensor, k_BLNE: Tensor, v_BLNE: Tensor) -> Tensor:
        return attention(q_BLNE.to(v_BLNE.dtype), k_BLNE.to(v_BLNE.dtype), v_BLNE)


@dataclass(frozen=True)
class SeeEarlierChunks:
    """Block-causal attention as a loop over chunks, each with unmasked attention on what it sees: no mask memory,
    every fast kernel applies, and it has a backward pass on every device."""

    bounds: list[Span]
    tokens_per_frame: int
    window: int | None
    sink: int

    def attend(self, layer: int, q_BLNE: Tensor, k_BLNE: Tensor, v_BLNE: Tensor) -> Tensor:
        q_BLNE, k_BLNE = q_BLNE.to(v_BLNE.dtype), k_BLNE.to(v_BLNE.dtype)
        out = []
        for span in self.bounds:
            seen = [self._tokens(s) for s in visible_spans(span, self.window, self.sink)]
            k = k_BLNE[:, seen[0]] if len(seen) == 1 else torch.cat([k_BLNE[:, s] for s in seen], dim=1)
            v = v_BLNE[:, seen[0]] if len(seen) == 1 else torch.cat([v_BLNE[:, s] for s in seen], dim=1)
            out.append(attention(q_BLNE[:, self._tokens(span)], k, v))
        return torch.cat(out, dim=1)

    def _tokens(self, span: Span) -> slice:
        return slice(span[0] * self.tokens_per_frame, span[1] * self.tokens_per_frame)


@dataclass(frozen=True)
class SeePast:
    """The chunk at hand and the committed past of its stream, or of each of several streams."""

    past: Past | PastOfMany

    def attend(self, layer: int, q_BLNE: Tensor, k_BLNE: Tensor, v_BLNE: Tensor) -> Tensor:
        q = q_BLNE.to(self.past.dtype)
        out = [attention(q[rows], k, v) for rows, k, v in self.past.look_back(layer, k_BLNE, v_BLNE)]
        return (out[0] if len(out) == 1 else torch.cat(out)).to(v_BLNE.dtype)


class RMSNorm(nn.Module):
    """Over the full width, all heads together; float32 inside, cast to the weight's dtype before the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps).to(self.weight.dtype) * self.weight


class PatchEmbedding(nn.Conv3d):
    """A convolution whose stride is a patch is one matrix product over patches (and many times faster on CPUs)."""

    def forward(self, x: Latents) -> Tensor:
        kernel, p, overlap = self.kernel_size[1], self.stride[1], self.padding[1]
        if overlap:
            windows = F.pad(x, [int(overlap)] * 4).unfold(3, kernel, p).unfold(4, kernel, p)
            patches = rearrange(windows, "B T C h w k l -> B T (h w) (C k l)")
        else:
            patches = rearrange(x, "B T C (h p) (w q) -> B T (h w) (C p q)", p=p, q=p)
        return F.linear(patches, self.weight.flatten(1), self.bias)  # [B, T, S, D]


def landmarks(x: Latents, first_frames: Sequence[int], num_frames: int) -> Tensor:
    """Row, column and frame as [B, T, 3, h, w], each from -1 to 1 and LOUD; frames stop at number `num_frames` - 1."""
    batch, frames, _, height, width = x.shape
    starts = torch.tensor(first_frames, device=x.device)[:, None]
    time = (starts + torch.arange(frames, device=x.device)).clamp(max=num_frames - 1) / (num_frames - 1) * 2 - 1
    rows = torch.linspace(-1, 1, height, device=x.device)
    columns = torch.linspace(-1, 1, width, device=x.device)
    shape = (batch, frames, height, width)
    planes = rows[:, None], columns, time[:, :, None, None]
    return torch.stack([LOUD * plane.expand(shape) for plane in planes], dim=2).to(x.dtype)


class SelfAttention(nn.Module):
    def __init__(self, cfg: VideoDiTConfig) -> None:
        super().__init__()
        self.num_heads = cfg.num_heads
        self.q = nn.Linear(cfg.width, cfg.width)
        self.k = nn.Linear(cfg.width, cfg.width)
        self.v = nn.Linear(cfg.width, cfg.width)
        self.o = nn.Linear(cfg.width, cfg.width)
        self.norm_q = RMSNorm(cfg.width, cfg.eps)
        self.norm_k = RMSNorm(cfg.width, cfg.eps)

    def forward(self, x: Tensor, rotation: Rotation, sight: Sight, layer: int) -> Tensor:
        heads = (self.num_heads, -1)
        q = rotate(self.norm_q(self.q(x)).unflatten(-1, heads), rotation)
        k = rotate(self.norm_k(self.k(x)).unflatten(-1, heads), rotation)
        v = self.v(x).unflatten(-1, heads)
        return self.o(sight.attend(layer, q, k, v).flatten(2))


class CrossAttention(nn.Module):
    """All text rows take part, padded ones too: there is no mask, as in Wan."""

    def __init__(self, cfg: VideoDiTConfig) -> None:
        super().__init__()
        self.num_heads = cfg.num_heads
        self.q = nn.Linear(cfg.width, cfg.width)
        self.k = nn.Linear(cfg.width, cfg.width)
        self.v = nn.Linear(cfg.width, cfg.width)
        self.o = nn.Linear(cfg.width, cfg.width)
        self.norm_q = RMSNorm(cfg.width, cfg.eps)
        self.norm_k = RMSNorm(cfg.width, cfg.eps)

    def project(self, text: Tensor) -> tuple[Tensor, Tensor]:
        heads = (self.num_heads, -1)
        k = self.norm_k(self.k(text)).unflatten(-1, heads)
        v = self.v(text).unflatten(-1, heads)
        return k.to(v.dtype), v

    def forward(self, x: Tensor, text: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        q = self.norm_q(self.q(x)).unflatten(-1, (self.num_heads, -1))
        k, v = text if isinstance(text, tuple) else self.project(text)
        return self.o(attention(q.to(v.dtype), k, v).flatten(2).to(x.dtype))


class TanhGELU(nn.Module):
    """Wan's. In bfloat16 on a CPU the exact form is as near to it as its own rounding, and four times faster."""

    def forward(self, x: Tensor) -> Tensor:
        exact = x.dtype == torch.bfloat16 and x.device.type == "cpu"
        return F.gelu(x, approximate="none" if exact else "tanh")


class Block(nn.Module):
    def __init__(self, cfg: VideoDiTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.eps = cfg.eps
        self.self_attn = SelfAttention(cfg)
        self.norm3 = nn.LayerNorm(cfg.width, eps=cfg.eps)  # the one before cross-attention, as Wan numbers them
        self.cross_attn = CrossAttention(cfg)
        self.ffn = nn.Sequential(nn.Linear(cfg.width, cfg.ffn_width), TanhGELU(), nn.Linear(cfg.ffn_width, cfg.width))
        self.modulation = nn.Parameter(torch.randn(1, 6, cfg.width) / cfg.width**0.5)

    def forward(
        self,
        x: Tensor,  # [B, T, S, D], the residual stream
        levels: Tensor,  # [B, T, 6, D]
        text: Tensor | tuple[Tensor, Tensor],
        rotation: Rotation,
        sight: Sight,
        dtype: torch.dtype,  # of the matrix products
    ) -> Tensor:
        modulation = (self.modulation.to(levels.dtype) + levels).unsqueeze(3)  # [B, T, 6, 1, D]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(2)
        frames = x.shape[1:3]
        norm = (x.shape[-1],)

        h = torch.addcmul(shift1, F.layer_norm(x, norm, eps=self.eps), 1 + scale1)
        h = self.self_attn(h.to(dtype).flatten(1, 2), rotation, sight, self.layer)
        x = torch.addcmul(x, h.unflatten(1, frames).to(x.dtype), gate1)

        h = F.layer_norm(x, norm, self.norm3.weight.to(x.dtype), self.norm3.bias.to(x.dtype), self.eps)
        x = x + self.cross_attn(h.to(dtype).flatten(1, 2), text).unflatten(1, frames).to(x.dtype)

        h = torch.addcmul(shift2, F.layer_norm(x, norm, eps=self.eps), 1 + scale2)
        return torch.addcmul(x, self.ffn(h.to(dtype)).to(x.dtype), gate2)


class Head(nn.Module):
    def __init__(self, cfg: VideoDiTConfig) -> None:
        super().__init__()
        self.eps = cfg.eps
        self.head = nn.Linear(cfg.width, cfg.patch**2 * cfg.out_channels)
        self.modulation = nn.Parameter(torch.randn(1, 2, cfg.width) / cfg.width**0.5)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """`level` [B, T, D] is the time embedding itself, not its six-fold projection."""
        shift, scale = (self.modulation.to(level.dtype) + level.unsqueeze(2)).unsqueeze(3).unbind(2)
        h = F.layer_norm(x, (x.shape[-1],), eps=self.eps) * (1 + scale) + shift
        return linear_in(h, self.head)


def linear_in(x: Tensor, layer: nn.Module) -> Tensor:
    """A linear layer in the dtype of x, whatever its weights are stored in."""
    assert isinstance(layer, nn.Linear)
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


class VideoDiT(nn.Module):
    def __init__(self, cfg: VideoDiTConfig) -> None:
        super().__init__()
        if cfg.width % cfg.num_heads or cfg.head_width % 2:
            raise ValueError(f"width {cfg.width} does not split into {cfg.num_heads} heads of even width")
        if cfg.parallax and len(cfg.parallax) != cfg.num_heads:
            raise ValueError(f"parallax is one share for each of {cfg.num_heads} heads, got {len(cfg.parallax)}")
        self.cfg = cfg
        self.checkpoint_blocks = False  # recompute blocks in the backward pass instead of keeping their activations
        stride, edge = (1, cfg.patch, cfg.patch), (0, cfg.overlap, cfg.overlap)
        kernel = (1, cfg.patch + 2 * cfg.overlap, cfg.patch + 2 * cfg.overlap)
        self.patch_embedding = PatchEmbedding(cfg.in_channels, cfg.width, kernel, stride, edge)
        self.text_embedding = nn.Sequential(
            nn.Linear(cfg.text_width, cfg.width), TanhGELU(), nn.Linear(cfg.width, cfg.width)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(cfg.freq_width, cfg.width), nn.SiLU(), nn.Linear(cfg.width, cfg.width)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(cfg.width, 6 * cfg.width))
        self.blocks = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.num_layers))
        self.head = Head(cfg)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Wan's initialisation: Xavier everywhere, small text and time MLPs, a head that starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        for name, parameter in self.named_parameters():
            if name == "patch_embedding.bias":
                nn.init.zeros_(parameter)
            elif name.startswith(("text_embedding.", "time_embedding.")) and name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)
        nn.init.zeros_(self.head.head.weight)

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products; latents and the cache may be of another."""
        return self.patch_embedding.weight.dtype

    def cast(self, dtype: torch.dtype) -> VideoDiT:
        """Weights in `dtype`, but for what `islands` keeps in float32."""
        self.to(dtype)
        if self.cfg.precision == "islands":
            for name, parameter in self.named_parameters():
                if is_island(name):
                    parameter.data = parameter.data.float()
        return self

    def forward(
        self,
        x_t: Latents,
        sigma: FrameSigma,
        text: Text | TextMemory,
        *,
        bounds: list[Span] | None = None,
        window: int | None = None,
        sink: int = 0,
        past: Past | PastOfMany | None = None,
        travel: Tensor | None = None,
    ) -> Latents:
        """The velocity of x_t. `bounds` (with `window`, `sink`) or `past` make it causal; never both.

        `travel` [B, T] is how far the view has come at each frame, in latents to the right; a past knows it itself."""
        p = self.cfg.patch
        height, width = x_t.shape[-2] // p, x_t.shape[-1] // p
        if x_t.shape[-2] % p or x_t.shape[-1] % p:
            raise ValueError(f"latents of {x_t.shape[-2]}x{x_t.shape[-1]} do not split into {p}x{p} patches")
        dtype = self.dtype

        sight: Sight = SeeAll()
        first_frames = [0]
        if past is not None:
            sight, first_frames, travel = SeePast(past), past.first_frames, past.travel
        elif bounds is not None:
            sight = SeeEarlierChunks(bounds, height * width, window, sink)
        rotation = grid_rotation(
            x_t.shape[1],
            height,
            width,
            self.cfg.head_width,
            first_frames=first_frames,
            ways=self._ways_of_heads(travel),
            device=x_t.device,
        )

        level, levels = self._embed_sigma(sigma, dtype)
        seen = x_t
        if self.cfg.landmarks:
            seen = torch.cat([x_t, landmarks(x_t, first_frames, self.cfg.landmarks)], dim=2)
        x = self.patch_embedding(seen.to(dtype)).to(level.dtype)  # [B, T, S, D]
        texts = self._text_per_layer(text, dtype)
        for block, block_text in zip(self.blocks, texts):
            if self.checkpoint_blocks and torch.is_grad_enabled():
                inputs = (x, levels, block_text, rotation, sight, dtype)
                x = checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), SameFunctions()))
            else:
                x = block(x, levels, block_text, rotation, sight, dtype)
        x = self.head(x, level)  # [B, T, S, p*p*C], channel fastest
        return rearrange(x, "B T (h w) (p q C) -> B T C (h p) (w q)", h=height, w=width, p=p, q=p).to(x_t.dtype)

    def _ways_of_heads(self, travel: Tensor | None) -> Tensor | None:
        """[B, T] latents -> [B, T, N] patches; a view of which nothing is known rests."""
        if travel is None or not self.cfg.parallax:
            return None
        shares = torch.tensor(self.cfg.parallax, dtype=torch.float64, device=travel.device)
        return travel.double().nan_to_num(0.0)[..., None] * shares / self.cfg.patch

    def project_text(self, text: Text) -> TextMemory:
        """Keys and values of a prompt in its dtype, once, for as many passes as use it. For inference: parameters are
        read outside of `forward`, which sharded training must not do."""
        embedded = self.text_embedding(text.to(self.dtype))
        pairs = [block.cross_attn.project(embedded) for block in cast("list[Block]", self.blocks)]
        return TextMemory(tuple(k.to(text.dtype) for k, _ in pairs), tuple(v.to(text.dtype) for _, v in pairs))

    def cache_shape(self, latent_height: int, latent_width: int) -> CacheShape:
        tokens = (latent_height // self.cfg.patch) * (latent_width // self.cfg.patch)
        return CacheShape(self.cfg.num_layers, self.cfg.num_heads, self.cfg.head_width, tokens)

    def _embed_sigma(self, sigma: FrameSigma, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """[B, T] -> the time embedding [B, T, D] and its six-fold projection [B, T, 6, D]."""
        features = timestep_features(sigma, self.cfg.freq_width)
        if self.cfg.precision == "plain":
            level = self.time_embedding(features.to(dtype))
            return level, self.time_projection(level).unflatten(-1, (6, -1))
        # each by itself on a CPU, where products of so few rows round otherwise beside others (serve/batch.py)
        apart = sigma.device.type == "cpu" and not torch.is_grad_enabled()
        with torch.autocast(sigma.device.type, enabled=False):
            embedded = [
                linear_in(F.silu(linear_in(rows, self.time_embedding[0])), self.time_embedding[2])
                for rows in (features.split(1) if apart else [features])
            ]
            projected = [linear_in(F.silu(rows), self.time_projection[1]) for rows in embedded]
            return torch.cat(embedded), torch.cat(projected).unflatten(-1, (6, -1))

    def _text_per_layer(self, text: Text | TextMemory, dtype: torch.dtype) -> list[Tensor | tuple[Tensor, Tensor]]:
        if isinstance(text, TextMemory):
            return list(zip(text.keys, text.values))
        return [self.text_embedding(text.to(dtype))] * len(self.blocks)


class SameFunctions(ExitStack):
    """What replaces functions now, such as the CPU's attention in training, does so when it is entered, later."""

    def __init__(self) -> None:
        super().__init__()
        self.modes = _get_current_function_mode_stack()

    def __enter__(self) -> SameFunctions:
        for mode in self.modes:
            self.enter_context(mode)
        return self


def is_island(name: str) -> bool:
    """Is this parameter one that the `islands` precision keeps in float32?"""
    return name.startswith(("time_", "head.")) or "norm" in name or name.endswith("modulation")


def num_parameters(cfg: VideoDiTConfig) -> tuple[int, int]:
    """(values, tensors) of a network, without allocating it."""
    with torch.device("meta"):
        parameters = list(VideoDiT(cfg).parameters())
    return sum(p.numel() for p in parameters), len(parameters)
