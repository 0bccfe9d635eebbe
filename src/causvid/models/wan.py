"""Published Wan transformers: their architectures, and their parameter names in the two layouts that circulate.

VideoDiT's own names are the original ones. diffusers renames every module; nothing is permuted, so converting is
renaming. Mind the norms: the one before cross-attention is `norm3` in the original and `norm2` in diffusers.
"""

import re
from dataclasses import replace

from causvid.models.dit import VideoDiTConfig

WAN_1_3B = VideoDiTConfig(
    width=1536,
    ffn_width=8960,
    num_heads=12,
    num_layers=30,
    in_channels=16,
    out_channels=16,
    patch=2,
    freq_width=256,
    text_width=4096,
    text_length=512,
    eps=1e-6,
    precision="islands",
)

WAN_14B = replace(WAN_1_3B, width=5120, ffn_width=13824, num_heads=40, num_layers=40)

# Wan2.2 TI2V-5B: the latents of the 16x16 autoencoder have 48 channels.
WAN_5B = replace(WAN_1_3B, width=3072, ffn_width=14336, num_heads=24, in_channels=48, out_channels=48)

HEAD_WIDTH = 128  # of every published Wan; weights do not show it
TEXT_LENGTH = 512
EPS = 1e-6

# ---- names -----------------------------------------------------------------------------------------------------

# original -> diffusers; the image branch (I2V) is here to be recognised, VideoDiT has none
_TOP = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
}
_IN_BLOCK = {
    **{
        f"{ours}_attn.{a}": f"{theirs}.{b}"
        for ours, theirs in (("self", "attn1"), ("cross", "attn2"))
        for a, b in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
    },
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
_TO_DIFFUSERS = (_TOP, _IN_BLOCK)
_TO_ORIGINAL = ({b: a for a, b in _TOP.items()}, {b: a for a, b in _IN_BLOCK.items()})

_BLOCK = re.compile(r"(blocks\.\d+)\.(.+)")
_FLAT_BLOCK = re.compile(r"blocks_(\d+)_(.+)")


def to_diffusers(name: str) -> str:
    """`blocks.0.self_attn.q.weight` -> `blocks.0.attn1.to_q.weight`; a name that Wan does not have stays as it is."""
    return _rename(name, *_TO_DIFFUSERS)


def to_original(name: str) -> str:
    """The way back. Original names stay as they are: no name of one layout means something else in the other."""
    return _rename(name, *_TO_ORIGINAL)


def unflatten(name: str) -> str | None:
    """`blocks_0_self_attn_q` -> `blocks.0.self_attn.q`: module names that were written with underscores for dots, in
    either layout; None for one that Wan does not have."""
    block = _FLAT_BLOCK.fullmatch(name)
    flat = block[2] if block else name
    for original, diffusers in (_IN_BLOCK if block else _TOP).items():
        if flat in (original.replace(".", "_"), diffusers.replace(".", "_")):
            return f"blocks.{block[1]}.{original}" if block else original
    return None


def _rename(name: str, top: dict[str, str], in_block: dict[str, str]) -> str:
    block = _BLOCK.fullmatch(name)
    prefix, rest, table = (block[1] + ".", block[2], in_block) if block else ("", name, top)
    module, suffix = rest, ""
    while module not in table:  # take `.weight` and the like off the end until what is left is a module
        module, dot, last = module.rpartition(".")
        if not dot:
            return name
        suffix = f".{last}{suffix}"
    return prefix + table[module] + suffix
