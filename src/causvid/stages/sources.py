"""What distillation starts from: networks and the text encoder that belongs to them, from a run of ours or a Wan model.

A folder of weights holds `teacher.safetensors` or `student.safetensors` beside `text.safetensors`; a Wan model is taken
as it was downloaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from causvid.atomic import whole_file
from causvid.checkpoints import load_into, read_state
from causvid.errors import UserError
from causvid.models.dit import TextMemory, VideoDiT, VideoDiTConfig
from causvid.noise import seeded
from causvid.shapes import FrameSigma, Latents, Text, Video
from causvid.text import TextEncoder
from causvid.text.vista import VistaText
from causvid.training import parallel
from causvid.training.cpu import fast_training
from causvid.view_noise import ViewNoise, carry_rows

Dtype = Literal["float32", "bfloat16"]
Role = Literal["teacher", "student", "critic"]
TEXT_FILE = "text.safetensors"


# ---- networks ------------------------------------------------------------------------------------------------------


def read_network(cfg: VideoDiTConfig, folder: str, role: Role, device: torch.device) -> VideoDiT:
    """A network of this size in float32, from `folder` (or a single weight file)."""
    model = VideoDiT(cfg)
    path = network_file(Path(folder), role)
    load_into(model, read_state(path), source=str(path))
    return model.to(device)


def network_file(folder: Path, role: Role) -> Path:
    """Where a role's weights are. A Wan model may be teacher, or a critic that is to begin as it."""
    if folder.is_file():
        return folder
    if (folder / f"{role}.safetensors").is_file():
        return folder / f"{role}.safetensors"
    if role != "student" and _is_wan(folder):
        return folder / "transformer" if (folder / "transformer").is_dir() else folder
    raise UserError(
        f"{folder} has no {role}: it holds no {role}.safetensors; give the weights/ folder of a finished run"
        + ("." if role == "student" else ", or a Wan model.")
    )


def frozen(model: VideoDiT, dtype: Dtype) -> VideoDiT:
    """Never trained. Its weights are cast once, unless they are spread over ranks, which wants one dtype."""
    model.eval().requires_grad_(False)
    return model if parallel.num_ranks() > 1 else model.cast(getattr(torch, dtype))


def shard(model: VideoDiT, recompute: bool = False) -> VideoDiT:
    model.checkpoint_blocks = recompute
    parallel.shard(model, model.blocks)
    return model


@dataclass(frozen=True)
class Network:
    """A network as losses and roll-outs want it: float32 outside, the working dtype inside, one way of seeing.

    Every call has an autocast of its own: weights that autocast has cast in a pass without gradients would be reused,
    without their gradients, by the next pass that needs them."""

    model: VideoDiT
    dtype: Dtype
    sight: dict[str, Any] = field(default_factory=dict)  # bounds, window and sink of `forward`; none: sees both ways
    acting: Callable[[], AbstractContextManager[Any]] = nullcontext  # where networks share weights: be this one

    def __call__(self, x_t: Latents, sigma: FrameSigma, text: Any, **sight: Any) -> Latents:
        dtype = getattr(torch, self.dtype)
        with self.acting(), fast_training(x_t.device, dtype):
            return self.model(x_t.to(dtype), sigma, text, **self.sight | sight).float()

    @torch.no_grad()
    def remember(self, text: Text) -> Text | TextMemory:
        """The text, projected once for many passes without gradients; as it is where parameters are spread over ranks
        and can be read inside a pass only."""
        if parallel.num_ranks() > 1:
            return text
        dtype = getattr(torch, self.dtype)
        with self.acting(), fast_training(text.device, dtype):
            return self.model.project_text(text.to(dtype))


# ---- text ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """A text encoder with the prompt that guidance moves away from."""

    encoder: TextEncoder
    no_prompt: str
    device: torch.device

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Text:
        return self.encoder(list(prompts)).to(self.device)

    def none(self, batch: int) -> Text:
        return self([self.no_prompt]).expand(batch, -1, -1)


def read_words(folder: str, device: torch.device) -> Words:
    path = Path(folder) if Path(folder).is_dir() else Path(folder).parent
    if (path / TEXT_FILE).is_file():
        return Words(VistaText.load(path / TEXT_FILE).to(device), "", device)
    if _is_wan(path):
        from causvid.text.umt5 import WAN_NEGATIVE_PROMPT
        from causvid.wan_world import load_text

        return Words(load_text(path, device), WAN_NEGATIVE_PROMPT, device)
    raise UserError(f"{path} holds no {TEXT_FILE}; give the weights/ folder of a finished run, or a Wan model.")


def encode_ahead(words: Words, prompts: Iterable[str], tell: Callable[[str], None]) -> None:
    """Let a large text encoder read what a run will need, each rank a share of it, and leave its memory to training.
    Collective."""
    from causvid.text.umt5 import Umt5Text

    if isinstance(words.encoder, Umt5Text):
        words.encoder.encode_ahead(
            [words.no_prompt, *islice(prompts, parallel.rank(), None, parallel.num_ranks())], tell
        )
        parallel.wait_for_all()


def read_student_words(init: str | None, teacher: str, words: Words) -> Words:
    """What a student reads that starts from `init`, under a teacher with these words. Every Wan model reads them with
    the same encoder, which is not copied to its students."""
    if init is None or (_is_wan(Path(teacher)) and not _text_file(init).is_file()):
        return words
    return read_words(init, words.device)


def hand_on_words(source: str, weights: Path) -> None:
    """Put the text encoder beside the weights that were trained with it. That of a Wan model stays where it is."""
    file = _text_file(source)
    if parallel.is_first() and file.is_file():
        with whole_file(weights / TEXT_FILE) as temporary:
            shutil.copyfile(file, temporary)


def _text_file(source: str) -> Path:
    return (Path(source) if Path(source).is_dir() else Path(source).parent) / TEXT_FILE


def _is_wan(path: Path) -> bool:
    folder = path.parent if path.is_file() else path
    return (folder / "transformer").is_dir() or any(folder.glob("Wan2.*_VAE.pth"))


# ---- looking at samples --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gallery:
    """What sample sheets show: prompts that are never trained on, and how latents become pictures."""

    prompts: list[str]
    decode: Callable[[Latents], Video]


def open_gallery(teacher: str, device: torch.device, num_prompts: int = 6) -> Gallery:
    """Vista's, or that of a Wan model: its codec, and one prompt of every kind of motion."""
    if _is_wan(Path(teacher)):
        from causvid.wan_world import load_codec

        codec = load_codec(Path(teacher), device)
        return Gallery(WAN_SHEET[:num_prompts], lambda x: codec.decode(x.to(device, codec.dtype)).float().cpu())
    from causvid.codecs.vista import VistaCodec
    from causvid.worlds import vista

    scenes = [vista.sample_scene(seed, "val") for seed in range(num_prompts)]
    prompts = [vista.caption(scene, seed, "val") for seed, scene in enumerate(scenes)]
    return Gallery(prompts, VistaCodec.load_packaged().decode)


WAN_SHEET = [
    "A small boat with a red sail crosses a windy bay, filmed from the shore in the evening light.",
    "A potter shapes a tall vase on a wheel, close view of wet hands and turning clay.",
    "A fox trots through deep snow between birch trees and stops to listen.",
    "A tram turns a corner in a rainy city at night, its lights mirrored in the street.",
    "Slow flight over a terraced hillside at sunrise, mist lying in the valley.",
    "A girl on a swing laughs as the camera moves with her.",
]


# ---- randomness ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draws:
    """The randomness of one update. Every number is named, noise by its row too, and the few others are drawn for the
    whole batch and cut to the rows at hand: all are the same on any number of ranks, in any number of parts, and after
    any interruption."""

    words: tuple[int, ...]  # seed, step, ...
    batch: int
    rows: slice
    device: torch.device

    def rng(self, *name: int) -> torch.Generator:
        return seeded(*self.words, *name)

    def normal(self, shape: tuple[int, ...], *name: int) -> Tensor:
        """[rows, *shape]"""
        rows = range(self.rows.start, self.rows.stop)
        return torch.stack([torch.randn(shape, generator=self.rng(*name, row)) for row in rows]).to(self.device)

    def carried(self, own: Latents, how: ViewNoise | None, travel: Tensor | None, *name: int) -> Latents:
        """Noise of the rows at hand that goes along with their views, [rows, T] latents."""
        words = [(*self.words, *name, row) for row in range(self.rows.start, self.rows.stop)]
        return carry_rows(how, own, travel, words)

    def integers(self, high: int, shape: tuple[int, ...], *name: int) -> Tensor:
        """[rows, *shape] of 0 ... high - 1"""
        return torch.randint(high, (self.batch, *shape), generator=self.rng(*name))[self.rows].to(self.device)

    def cut(self, x: Tensor) -> Tensor:
        """The rows at hand of something that is known for the whole batch."""
        return x[self.rows].to(self.device)

    def cut_own(self, x: Tensor) -> Tensor:
        """The rows at hand of something that this rank knows of its own rows alone."""
        first = parallel.my_rows(self.batch).start
        return x[self.rows.start - first : self.rows.stop - first].to(self.device)


def parts_of(batch: int, accumulate: int) -> Iterator[slice]:
    """This rank's rows of a batch in equal parts, whose gradients add up."""
    mine = parallel.my_rows(batch)
    if (mine.stop - mine.start) % accumulate:
        raise UserError(
            f"{mine.stop - mine.start} clips on each process do not split into {accumulate} parts; "
            "choose a batch that is a multiple of processes times accumulate."
        )
    size = (mine.stop - mine.start) // accumulate
    for start in range(mine.start, mine.stop, size):
        yield slice(start, start + size)
