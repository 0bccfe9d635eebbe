"""What a stream was: its events, its chunks, and a file that holds both.

A take is enough to show the stream again bit for bit (decode the latents), to go on with it (commit them again), and to
make it anew with other steps or another network (follow the events). The file is safetensors with JSON in its header:
reading one runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from causvid.atomic import whole_file
from causvid.errors import UserError
from causvid.pixels import frames_from_video
from causvid.story import first_words, is_story

if TYPE_CHECKING:
    from causvid.bundle import Model

FORMAT = "causvid take 1"
SUFFIX = ".take"
MAX_CHUNKS = 100_000

Kind = Literal["made", "given", "restyled"]
EventKind = Literal["start", "prompt", "settings", "source", "cut"]


@dataclass(frozen=True)
class Event:
    """Something that was asked of a stream, in force from `chunk` on."""

    chunk: int
    time: float  # seconds since the stream began
    kind: EventKind
    value: dict[str, Any]


@dataclass(frozen=True)
class ChunkNote:
    """What a file says of a chunk, besides its latents."""

    kind: Kind
    num_latents: int
    begins_shot: bool = False  # the decoder starts afresh with it
    strength: float | None = None  # noise level from which it was restyled
    of: str | None = None  # what its source was said to show, where that was edited
    exact: bool = True  # computed as if alone, so that computing it again gives the same bits


@dataclass(frozen=True)
class Cut:
    """A cache begun afresh before `chunk` from these earlier ones: what recache, flush and a new window do."""

    chunk: int
    fed: tuple[int, ...] = ()
    own_words: bool = True  # each under the words it was made with, and not under those of `chunk`


@dataclass(frozen=True)
class Shown:
    """A chunk of a take, decoded."""

    frames: np.ndarray  # uint8 [F, H, W, 3]
    index: int
    prompt: str


@dataclass(frozen=True)
class _Header:
    format: str
    model: str
    fps: float
    dtype: str
    latent_shape: tuple[int, int, int]
    events: tuple[Event, ...]
    chunks: tuple[ChunkNote, ...]
    cuts: tuple[Cut, ...]


@dataclass(frozen=True)
class Take:
    model: str  # name of the model that made it
    fps: float
    latent_shape: tuple[int, int, int]
    events: tuple[Event, ...]
    chunks: tuple[ChunkNote, ...]
    cuts: tuple[Cut, ...]
    latents: tuple[Tensor, ...]  # [1, K, C, h, w] per chunk, as they were made
    sources: Mapping[int, Tensor] = field(default_factory=dict)  # what restyled chunks began from

    @property
    def seed(self) -> int:
        return self.events[0].value["seed"]

    @property
    def num_latents(self) -> int:
        return sum(chunk.num_latents for chunk in self.chunks)

    def prompts(self, told: bool = False) -> list[str]:
        """The prompt that each chunk follows, or is on its way to; with `told`, of a story the part that was told."""
        out, prompt, events = [], "", list(self.events)
        for index in range(len(self.chunks)):
            while events and events[0].chunk <= index:
                event = events.pop(0)
                if event.kind in ("start", "prompt"):
                    prompt = first_words(event.value) if told else event.value["text"]
            out.append(prompt)
        return out

    def starts(self) -> list[int]:
        """The first latent frame of every chunk, and after them the number of all."""
        out = [0]
        for chunk in self.chunks:
            out.append(out[-1] + chunk.num_latents)
        return out

    # ---- showing it again ----------------------------------------------------------------------------------------

    def check_codec(self, model: Model) -> None:
        if self.latent_shape != model.latent_shape:
            raise UserError(
                f"this take has latents of {list(self.latent_shape)} and the model '{model.cfg.name}' has "
                f"{list(model.latent_shape)}; use the model it was made with, '{self.model}'"
            )

    def replay(self, model: Model, start: int = 0, stop: int | None = None) -> Iterator[Shown]:
        """The very frames that the stream gave. Only the codec runs."""
        return (shown for shown in self.replay_in_turns(model, start, stop) if shown is not None)

    @torch.no_grad()
    def replay_in_turns(self, model: Model, start: int = 0, stop: int | None = None) -> Iterator[Shown | None]:
        """The same, and None for every chunk of the shot that the decoder has to see before `start`."""
        self.check_codec(model)
        prompts = self.prompts()
        begin = max((i for i, chunk in enumerate(self.chunks) if chunk.begins_shot and i <= start), default=0)
        decode = model.decode_stream()
        for index in range(begin, len(self.chunks) if stop is None else min(stop, len(self.chunks))):
            if self.chunks[index].begins_shot:
                decode = model.decode_stream()
            video = decode(self.latents[index].to(device=model.device, dtype=model.codec.dtype))
            yield Shown(frames_from_video(video), index, prompts[index]) if index >= start else None

    # ---- the file --------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        dtype = self.latents[0].dtype if self.latents else torch.float32
        header = _Header(
            FORMAT,
            self.model,
            self.fps,
            str(dtype).removeprefix("torch."),
            self.latent_shape,
            self.events,
            self.chunks,
            self.cuts,
        )
        empty = torch.zeros(0, *self.latent_shape, dtype=dtype)
        tensors = {"latents": torch.cat([empty, *(t[0].cpu() for t in self.latents)])}
        for index, source in self.sources.items():
            tensors[f"source.{index}"] = source[0].cpu().contiguous()
        return save(tensors, {"take": json.dumps(asdict(header), ensure_ascii=False, separators=(",", ":"))})

    def save(self, path: str | Path) -> Path:
        path = Path(path)
        with whole_file(path) as temporary:
            temporary.write_bytes(self.to_bytes())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Take:
        path = Path(path)
        if not path.is_file():
            raise UserError(f"there is no take {path}; give the path of a {SUFFIX} file")
        try:
            with safe_open(path, framework="pt") as file:
                about = (file.metadata() or {}).get("take")
                if about is None:
                    raise UserError(f"{path} holds tensors but is not a take; give a file that a session saved")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is not a take that can be read ({str(error).splitlines()[0][:120]})") from None
        return cls._assemble(about, tensors, str(path))

    @classmethod
    def _assemble(cls, about: str, tensors: dict[str, Tensor], source: str) -> Take:
        try:
            header = TypeAdapter(_Header).validate_json(about)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"{source} is a damaged take ({where}: {first['msg']}); save it again") from None
        problem = _find_problem(header, tensors)
        if problem:
            raise UserError(f"{source} is a damaged take ({problem}); save it again")
        sizes = [chunk.num_latents for chunk in header.chunks]
        return cls(
            header.model,
            header.fps,
            header.latent_shape,
            header.events,
            header.chunks,
            header.cuts,
            tuple(part[None] for part in tensors["latents"].split(sizes)) if sizes else (),
            {int(name.removeprefix("source.")): t[None] for name, t in tensors.items() if name != "latents"},
        )

    def info(self) -> dict[str, Any]:
        """What there is to say about it, for people."""
        kinds = [chunk.kind for chunk in self.chunks]
        return {
            "model": self.model,
            "seed": self.seed,
            "chunks": len(self.chunks),
            "latent frames": self.num_latents,
            "seconds": round(_seconds(self), 2),
            "kinds": {kind: kinds.count(kind) for kind in ("made", "given", "restyled") if kind in kinds},
            "exact": all(chunk.exact for chunk in self.chunks),
            "events": [
                {"chunk": event.chunk, "time": round(event.time, 2), event.kind: event.value} for event in self.events
            ],
        }


def _seconds(take: Take) -> float:
    """Of a codec that makes four frames of a latent, the first of a shot alone."""
    shots = 1 + sum(chunk.begins_shot for chunk in take.chunks[1:])
    return max(0, 4 * take.num_latents - 3 * shots) / take.fps


def _find_problem(header: _Header, tensors: dict[str, Tensor]) -> str | None:
    """What is wrong with a file from outside, in words; None if nothing is."""
    num_chunks = len(header.chunks)
    if header.format != FORMAT:
        return f"its format is '{header.format}' and not '{FORMAT}'"
    if num_chunks > MAX_CHUNKS or any(chunk.num_latents < 1 for chunk in header.chunks):
        return "its chunks have impossible sizes"
    if not header.events or header.events[0].kind != "start" or header.events[0].chunk != 0:
        return "its events do not begin with a start"
    start = header.events[0].value
    if type(start.get("seed")) is not int or not isinstance(start.get("options"), dict):
        return "its start lacks a seed or options"
    if any(not isinstance(e.value.get("text"), str) for e in header.events if e.kind in ("start", "prompt")):
        return "a prompt is not text"
    if not all(is_story(event.value["story"]) for event in header.events if "story" in event.value):
        return "a story is not a short list of prompts"
    if any(a.chunk > b.chunk for a, b in zip(header.events, header.events[1:])):
        return "its events are out of order"
    if any(not 0 <= event.chunk <= num_chunks for event in header.events):
        return "an event points outside of it"
    if any(not 0 <= cut.chunk <= num_chunks or any(i not in range(cut.chunk) for i in cut.fed) for cut in header.cuts):
        return "a cut points outside of it"
    if not header.cuts or header.cuts[0].chunk != 0:
        return "its cuts do not begin with its first chunk"
    if any(a.chunk > b.chunk for a, b in zip(header.cuts, header.cuts[1:])):
        return "its cuts are out of order"
    total = sum(chunk.num_latents for chunk in header.chunks)
    if "latents" not in tensors or tuple(tensors["latents"].shape) != (total, *header.latent_shape):
        return "its latents do not fit its chunks"
    restyled = {f"source.{i}": chunk for i, chunk in enumerate(header.chunks) if chunk.kind == "restyled"}
    if tensors.keys() - {"latents"} != restyled.keys():
        return "its sources do not fit its chunks"
    for name, chunk in restyled.items():
        if tuple(tensors[name].shape) != (chunk.num_latents, *header.latent_shape):
            return f"{name} has another shape than its chunk"
        if chunk.strength is None or not 0 < chunk.strength <= 1:
            return f"the strength of {name} is not between 0 and 1"
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"{name} is stored as {tensor.dtype}"
        if not torch.isfinite(tensor).all():
            return f"{name} holds numbers that are not finite"
    return None
