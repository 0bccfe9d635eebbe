"""The umT5-XXL text encoder of Wan, through transformers (extra `wan`), with embeddings kept on disk.

The encoder is large (11 GB) and a prompt's embedding never changes, so it is read only when a prompt is not in the
store, and `unload` drops it again.
"""

import hashlib
import html
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from causvid.errors import UserError
from causvid.shapes import Text
from causvid.tensor_files import load_strictly, read_tensors
from causvid.text import Understood

Rows = Float[Tensor, "tokens D_text"]  # the true rows of one prompt, without padding

WAN_NUM_TOKENS = 512  # released Wan2.1 and Wan2.2 configurations: text_len

# One line, shared by the sampling configurations of Wan2.1 and Wan2.2.
WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)

# transformers' UMT5Config for the encoder in `models_t5_umt5-xxl-enc-bf16.pth`.
UMT5_XXL_CONFIG: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
}
UMT5_XXL_BYTES = 2 * 5_680_910_336  # of its weights in bfloat16


def clean_for_wan(text: str) -> str:
    """Wan's prompt cleaning: repair broken text, resolve HTML entities twice, one space for any run of whitespace."""
    ftfy = _wan_extra("ftfy")
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text.strip()).strip()


class EmbeddingStore:
    """Prompt embeddings in a folder, one safetensors file per prompt and encoder. Safe for several writers at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file_of(self, identity: str, prompt: str) -> Path:
        key = hashlib.sha256(f"{identity}\n{prompt}".encode()).hexdigest()
        return self.folder / f"{key}.safetensors"

    def get(self, identity: str, prompt: str) -> Rows | None:
        """The stored rows, or None if this encoder has not seen the prompt."""
        file = self.file_of(identity, prompt)
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as stored:
                return stored.get_tensor("rows")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged; delete it, and the prompt will be encoded again.") from error

    def put(self, identity: str, prompt: str, rows: Rows) -> None:
        """Write beside the final name and rename: a reader never sees half a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.file_of(identity, prompt)
        handle, partial = tempfile.mkstemp(dir=self.folder, suffix=".partial")
        os.close(handle)
        try:
            save_file({"rows": rows.contiguous().cpu()}, partial, metadata={"prompt": prompt, "encoder": identity})
            Path(partial).replace(file)
        finally:
            Path(partial).unlink(missing_ok=True)


class Umt5Text:
    """Prompts to [B, 512, 4096]; rows past the end of a prompt are exactly 0, as Wan was trained."""

    def __init__(
        self,
        load_encoder: Callable[[], nn.Module],
        tokenizer_folder: Path,
        width: int,
        identity: str,
        *,
        store: EmbeddingStore | None = None,
        length: int = WAN_NUM_TOKENS,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        self.load_encoder = load_encoder
        self.tokenizer_folder = tokenizer_folder
        self.width = width
        self.length = length
        self.identity = f"{identity} {str(dtype).removeprefix('torch.')} {length}"
        self.store = store
        self.dtype = dtype
        self.device = torch.device(device)
        self.encoder: nn.Module | None = None
        self.tokenizer: Any = None

    @classmethod
    def from_folder(cls, folder: Path, *, dtype: torch.dtype = torch.bfloat16, **settings: Any) -> "Umt5Text":
        """From a model in diffusers' layout: `text_encoder/` and `tokenizer/` in one folder."""
        config_file = folder / "text_encoder" / "config.json"
        if not config_file.is_file():
            raise UserError(f"{config_file} does not exist; give a model folder in diffusers' layout.")
        shards = sorted(config_file.parent.glob("*.safetensors"))
        if not shards:
            raise UserError(f"{config_file.parent} holds no .safetensors file; download the text encoder into it.")
        config = json.loads(config_file.read_text())

        def load() -> nn.Module:
            state = {name: tensor for shard in shards for name, tensor in read_tensors(shard).items()}
            return build_encoder(config, state, str(config_file.parent), dtype)

        tokenizer_folder = folder / "tokenizer"
        identity = fingerprint([config_file, *shards, *_tokenizer_files(tokenizer_folder)])
        return cls(load, tokenizer_folder, config["d_model"], identity, dtype=dtype, **settings)

    @classmethod
    def from_original(
        cls,
        weights: Path,
        tokenizer_folder: Path,
        *,
        config: dict[str, Any] | None = None,
        dtype: torch.dtype = torch.bfloat16,
        **settings: Any,
    ) -> "Umt5Text":
        """From the Wan project's `models_t5_umt5-xxl-enc-bf16.pth` and its `google/umt5-xxl` tokeniser folder."""
        if not weights.is_file():
            raise UserError(f"{weights} does not exist; give the path of models_t5_umt5-xxl-enc-bf16.pth.")
        config = UMT5_XXL_CONFIG if config is None else config

        def load() -> nn.Module:
            return build_encoder(config, transformers_from_original(read_tensors(weights)), str(weights), dtype)

        identity = fingerprint([weights, *_tokenizer_files(tokenizer_folder)])
        return cls(load, tokenizer_folder, config["d_model"], identity, dtype=dtype, **settings)

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Text:
        text = torch.zeros(len(prompts), self.length, self.width, dtype=self.dtype, device=self.device)
        for block, prompt in zip(text, prompts, strict=True):
            rows = self.rows(clean_for_wan(prompt))
            block[: len(rows)] = rows
        return text

    def understand(self, prompt: str) -> Understood:
        """Every word says something to it."""
        return Understood(prompt)

    def rows(self, prompt: str) -> Rows:
        """The true rows of one cleaned prompt, from the store if it has them."""
        stored = None if self.store is None else self.store.get(self.identity, prompt)
        if stored is not None:
            return stored.to(self.device)
        rows = self.encode(prompt)
        if self.store is not None:
            self.store.put(self.identity, prompt, rows)
        return rows

    def encode(self, prompt: str) -> Rows:
        """Run the encoder, one prompt at a time and without padding: the result does not depend on other prompts.

        Padding would be masked out anyway, so this equals the padded run up to rounding, at a fraction of the work.
        """
        if self.tokenizer is None:
            self.tokenizer = _wan_extra("transformers").AutoTokenizer.from_pretrained(
                self.tokenizer_folder, local_files_only=True
            )
        if self.encoder is None:
            self.encoder = self.load_encoder().to(self.device)
        tokens = self.tokenizer(prompt, add_special_tokens=True).input_ids
        if len(tokens) > self.length:
            warnings.warn(
                f"the prompt has {len(tokens)} tokens, only the first {self.length} are used: {prompt[:60]}...",
                stacklevel=2,
            )
            tokens = self.tokenizer(prompt, add_special_tokens=True, truncation=True, max_length=self.length).input_ids
        input_ids = torch.tensor([tokens], device=self.device)
        return self.encoder(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).last_hidden_state[0]

    @torch.no_grad()
    def encode_ahead(self, prompts: Iterable[str], tell: Callable[[str], None] = lambda text: None) -> None:
        """Put those prompts into the store that it lacks, and drop the weights."""
        if self.store is None:
            return
        cleaned = dict.fromkeys(map(clean_for_wan, prompts))
        missing = [prompt for prompt in cleaned if not self.store.file_of(self.identity, prompt).exists()]
        if missing:
            tell(f"the text encoder reads {len(missing)} new prompts on each process")
        for prompt in missing:
            self.store.put(self.identity, prompt, self.encode(prompt))
        self.unload()

    def unload(self) -> None:
        """Drop the encoder's weights; the next prompt that is not in the store reads them again."""
        self.encoder = None


def build_encoder(config: dict[str, Any], state: dict[str, Tensor], source: str, dtype: torch.dtype) -> nn.Module:
    """transformers' UMT5EncoderModel with these tensors; the token table may be there under either of its two names."""
    transformers = _wan_extra("transformers")
    with torch.device("meta"):
        encoder = transformers.UMT5EncoderModel(transformers.UMT5Config.from_dict(config))
    tensors = {name: tensor.to(dtype) for name, tensor in state.items()}
    table = tensors.pop("encoder.embed_tokens.weight", None)
    table = tensors.pop("shared.weight", table)
    if table is not None:
        tensors |= {"shared.weight": table, "encoder.embed_tokens.weight": table}
    load_strictly(encoder, tensors, source)
    return encoder.eval().requires_grad_(False)


# Names of the original file, in the order in which they are rewritten to transformers' names.
_RENAMES = [
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.block.\1.layer.0.SelfAttention."),
    (r"^blocks\.(\d+)\.pos_embedding\.embedding\.", r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
]


def transformers_from_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under transformers' names. Unknown names pass unchanged, for the strict load to tell."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def fingerprint(files: list[Path], samples: int = 16, sample_bytes: int = 1 << 16) -> str:
    """Tells encoders apart without reading 11 GB: sizes, and samples spread evenly over each file."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{size}\n".encode())
        with file.open("rb") as content:
            for index in range(samples):
                content.seek(max(0, size - sample_bytes) * index // (samples - 1))
                digest.update(content.read(sample_bytes))
    return digest.hexdigest()


def _tokenizer_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.glob("*") if file.suffix in (".json", ".model"))
    if not files:
        raise UserError(f"{folder} holds no tokeniser; give the folder with tokenizer.json or spiece.model in it.")
    return files


def _wan_extra(module: str) -> Any:
    """A package of the optional extra, imported when it is first needed: some take seconds."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"Wan's text encoder needs {module}; run `pip install 'causvid[wan]'`.") from error
