"""Vista's text encoder: whole words of a closed vocabulary, a small transformer that learns first what captions say.

Rows past the end of a prompt are exactly 0 and the network sees them, as with Wan's encoder. An empty prompt is its end
mark alone: one learned row, which is what guidance pushes away from.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causvid import config
from causvid.atomic import all_or_nothing
from causvid.errors import UserError
from causvid.shapes import Text
from causvid.tensor_files import load_strictly, read_file, write_tensors
from causvid.text import MAX_PARTS, Understood
from causvid.view_noise import Course

PAD, END, UNKNOWN, COMMA = 0, 1, 2, 3
FIRST_WORD = 4  # words follow in the order of the vocabulary, which is part of the weights
MAX_NEAR = 8  # unknown words of a prompt that similar ones are looked for

_TOKEN = re.compile(r"[^\W_]+(?:['-][^\W_]+)*|[,;:.!?]")


@dataclass(frozen=True)
class VistaTextConfig:
    width: int
    ffn_width: int
    num_layers: int
    num_heads: int
    length: int


def split_words(prompt: str) -> list[str]:
    """Lower-case words and commas. Any punctuation inside a prompt is a comma, at its end it is nothing."""
    tokens = ["," if not token[0].isalnum() else token for token in _TOKEN.findall(prompt.lower())]
    kept = [token for token, before in zip(tokens, [",", *tokens]) if token != "," or before != ","]
    return kept[:-1] if kept and kept[-1] == "," else kept


class Layer(nn.Module):
    def __init__(self, cfg: VistaTextConfig) -> None:
        super().__init__()
        self.num_heads = cfg.num_heads
        self.norm1 = nn.LayerNorm(cfg.width)
        self.qkv = nn.Linear(cfg.width, 3 * cfg.width)
        self.o = nn.Linear(cfg.width, cfg.width)
        self.norm2 = nn.LayerNorm(cfg.width)
        self.ffn = nn.Sequential(
            nn.Linear(cfg.width, cfg.ffn_width), nn.GELU(approximate="tanh"), nn.Linear(cfg.ffn_width, cfg.width)
        )

    def forward(self, x: Tensor, is_word: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=is_word[:, None, None, :])
        x = x + self.o(seen.transpose(1, 2).flatten(2))
        return x + self.ffn(self.norm2(x))


class VistaText(nn.Module):
    """Prompts to [B, length, width]."""

    def __init__(self, cfg: VistaTextConfig, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.cfg, self.vocabulary = cfg, tuple(vocabulary)
        self.width, self.length = cfg.width, cfg.length
        self.ids = {word: FIRST_WORD + index for index, word in enumerate(self.vocabulary)}
        if len(self.ids) != len(self.vocabulary):
            raise ValueError("a word stands twice in the vocabulary")
        self.words = nn.Embedding(FIRST_WORD + len(self.vocabulary), cfg.width)
        self.places = nn.Parameter(0.5 * torch.randn(cfg.length, cfg.width))
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.num_layers))
        self.norm = nn.LayerNorm(cfg.width)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """[B, length] of word numbers: the prompt, its end mark, padding. Too long prompts lose their tail."""
        tokens = torch.full((len(prompts), self.length), PAD)
        for row, prompt in zip(tokens, prompts):
            words = split_words(prompt)[: self.length - 1]
            numbers = [COMMA if word == "," else self.ids.get(word, UNKNOWN) for word in words] + [END]
            row[: len(numbers)] = torch.tensor(numbers)
        return tokens

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that the model has never been told, in order."""
        return [word for word in split_words(prompt) if word != "," and word not in self.ids]

    def num_lost_words(self, prompt: str) -> int:
        """How many words at the end of a prompt do not fit."""
        return max(0, len(split_words(prompt)) - (self.length - 1))

    def understand(self, prompt: str) -> Understood:
        """In words of captions, where they say the same: captions themselves are left as they are."""
        from causvid.worlds.vista.parsing import names_a_hero
        from causvid.worlds.vista.phrases import HERO_WORDS
        from causvid.worlds.vista.story import story
        from causvid.worlds.vista.wording import rephrase

        text, read_as = rephrase(prompt)
        if not split_words(text):  # nothing but words that can be left out
            text, read_as = prompt, {}
        strange = self.unknown_words(text)
        if prompt.strip() and not split_words(prompt):  # no word at all
            strange = [prompt.strip()]
        unknown: dict[str, tuple[str, ...]] = dict.fromkeys(strange, ())
        near = {
            word: tuple(get_close_matches(word, self.vocabulary, n=3, cutoff=0.76)) for word in [*unknown][:MAX_NEAR]
        }
        instead = tuple(HERO_WORDS) if unknown and not names_a_hero(text) else ()
        parts = story(text, MAX_PARTS)
        if any(self.unknown_words(part) for part in parts):  # an encoder of fewer words than captions have
            parts = ()
        return Understood(text, read_as, unknown | near, self.num_lost_words(text), instead, parts)

    def settle(self, parts: Sequence[str], seed: int, before: str) -> tuple[str, ...]:
        """Prompts with what they leave open named, so that a stream keeps to it."""
        from causvid.worlds.vista.settling import settle

        settled = settle(parts, seed, before)
        for part, named in zip(parts, settled, strict=True):
            strange = {*self.unknown_words(named)} - {*self.unknown_words(part)}
            if strange or self.num_lost_words(named) > self.num_lost_words(part):
                return tuple(parts)
        return settled

    def course(self, seed: int, height: int) -> Course:
        """How the view moves in pictures of this many rows of latents, before anything is said."""
        from causvid.worlds.vista.course import HEIGHT, VistaCourse

        return VistaCourse(seed, height / HEIGHT)

    def forward(self, prompts: list[str]) -> Text:
        tokens = self.tokenize(prompts).to(self.places.device)
        # only as many columns as the longest prompt needs; the rest is zeros anyway
        used = int((tokens != PAD).sum(dim=1).max())
        is_word = tokens[:, :used] != PAD
        x = self.words(tokens[:, :used]) + self.places[:used]
        for layer in self.layers:
            x = layer(x, is_word)
        x = self.norm(x) * is_word.unsqueeze(-1)
        return F.pad(x, (0, 0, 0, self.length - used))

    def about(self) -> dict[str, str]:
        """What a weight file must say besides the weights: its metadata, for `load`."""
        return {"config": json.dumps(asdict(self.cfg)), "vocabulary": json.dumps(self.vocabulary)}

    def save(self, path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """A file that `load` reads, whole or not at all."""
        with all_or_nothing(path.parent) as temporary:
            write_tensors(temporary(path.name), self.state_dict(), self.about(), dtype)

    @classmethod
    def load(cls, path: Path) -> "VistaText":
        state, about = read_file(path)
        if not {"config", "vocabulary"} <= about.keys():
            raise UserError(f"{path} does not say which words it knows; give the text encoder that training wrote.")
        cfg = config.from_json(VistaTextConfig, json.loads(about["config"]), source=str(path))
        with torch.device("meta"):
            encoder = cls(cfg, json.loads(about["vocabulary"]))
        load_strictly(encoder, {name: t.float() for name, t in state.items()}, str(path))
        return encoder.eval().requires_grad_(False)
