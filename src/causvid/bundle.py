"""Model: the networks, codec and text encoder that belong together, and how they are run.

Networks are read when they are first needed, so a stream never pays for the teacher, nor a teacher's sample for the
student. A saved model is a folder that holds `model.json` beside safetensors files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from causvid import config, flow, sample
from causvid.atomic import whole_file
from causvid.codecs import Codec, CodecStream, num_latent_frames
from causvid.codecs.steady import SteadyStream
from causvid.errors import UserError
from causvid.export import save_original
from causvid.lora import LoraSet
from causvid.models.dit import TextMemory, VideoDiT
from causvid.noise import chunk_noise
from causvid.rollout import RolloutConfig
from causvid.sample import ODE, Noise, Renewal
from causvid.session import Session, StreamOptions, frames_from_video
from causvid.shapes import FrameSigma, Latents, Text
from causvid.text import Navigator, Settler, TextEncoder, Understood, clean_prompt
from causvid.view_noise import Course, ViewNoise, carry_rows

SPEC_FILE = "model.json"


@dataclass(frozen=True)
class TeacherSampling:
    """How the bidirectional teacher is sampled by default."""

    steps: int
    guidance: flow.Guidance
    shift: float
    renewal: Renewal = ODE


@dataclass(frozen=True)
class ModelConfig:
    """What `model.json` says."""

    name: str
    fps: float
    height: int
    width: int
    num_latents: int  # latent frames of a training clip
    codec: Literal["vista", "wan", "tiny"]
    text: Literal["vista", "umt5"]
    rollout: RolloutConfig
    teacher: TeacherSampling
    no_prompt: str = ""  # what guidance moves away from
    allow_empty_prompt: bool = False
    codec_folder: str | None = None  # where codec and text live when they are too large to copy
    text_folder: str | None = None
    view_noise: ViewNoise | None = None  # noise that moves with the view, for those networks that know of it
    steady: float = 0.0  # the share of what moves between latent frames that is carried on within them
    recipes: dict[str, RolloutConfig] = field(default_factory=dict)  # other ways to run the same student, by name


Network = Callable[[], VideoDiT]


@dataclass
class Model:
    """A teacher, a student, or both, with what they need to make video."""

    cfg: ModelConfig
    codec: Codec
    text: TextEncoder
    teacher_source: Network | None = None
    student_source: Network | None = None
    guide_source: Network | None = None  # a worse teacher, for the pass of guidance that has no caption
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _teacher: VideoDiT | None = field(default=None, repr=False)
    _student: VideoDiT | None = field(default=None, repr=False)
    _guide: VideoDiT | None = field(default=None, repr=False)
    _no_text: Text | None = field(default=None, repr=False)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one latent frame."""
        factor = self.codec.space_factor
        return self.codec.latent_channels, self.cfg.height // factor, self.cfg.width // factor

    def resize(self, height: int, width: int) -> None:
        """Make pictures of another size from here on. Far from the trained size, quality falls."""
        step = self.codec.space_factor * 2  # a token is a patch of 2 x 2 latents
        if height < step or width < step or height % step or width % step:
            near = tuple(max(step, round(side / step) * step) for side in (height, width))
            raise UserError(
                f"this model makes pictures in steps of {step} pixels: {height}x{width} could be {near[0]}x{near[1]}"
            )
        self.cfg = replace(self.cfg, height=height, width=width)

    def need_teacher(self) -> VideoDiT:
        if self._teacher is None:
            if self.teacher_source is None:
                raise UserError(f"the model '{self.cfg.name}' has no bidirectional teacher; stream from its student")
            self._teacher = self.teacher_source()
        return self._teacher

    def need_student(self) -> VideoDiT:
        if self._student is None:
            if self.student_source is None:
                raise UserError(
                    f"the model '{self.cfg.name}' has no causal student; give one with student=PATH (--student on the "
                    "command line), or sample its teacher"
                )
            self._student = self.student_source()
        return self._student

    def guided(self, text: Text, guidance: flow.Guidance, travel: Tensor | None = None) -> sample.Field:
        """The teacher's velocity under these words, as it is sampled, in a view that moves so."""
        travel = None if travel is None else travel.to(self.device)
        teacher = partial(self.need_teacher(), travel=travel)
        if guidance == 1:
            return sample.guided(teacher, text, None, 1)
        if self._guide is None and self.guide_source is not None:
            self._guide = self.guide_source()
        guide = self._guide and partial(self._guide, travel=travel)
        return sample.guided(teacher, text, self.no_text(), guidance, guide)

    # ---- text --------------------------------------------------------------------------------------------------

    def understand(self, prompt: str) -> Understood:
        """A prompt, checked, in the words that the text encoder is given, and what a user should know about that."""
        return self.text.understand(clean_prompt(prompt, allow_empty=self.cfg.allow_empty_prompt))

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Text:
        """Prompts, checked and understood, as the rows a network reads."""
        texts = [self.understand(prompt).text for prompt in prompts]
        return self.text(texts).to(device=self.device, dtype=self.dtype)

    def no_text(self) -> Text:
        """What a network reads where nothing is said."""
        if self._no_text is None:
            self._no_text = self.text([self.cfg.no_prompt]).to(device=self.device, dtype=self.dtype)
        return self._no_text

    @torch.no_grad()
    def remember(self, prompt: str) -> TextMemory:
        """A prompt, projected once for every pass of the student that uses it."""
        return self.need_student().project_text(self.embed([prompt]))

    def view_noise(self, network: VideoDiT) -> ViewNoise | None:
        """How noise goes along with the view for teacher or student: where they know places, they learnt from it."""
        return self.cfg.view_noise if network.cfg.parallax else None

    def course(self, seed: int, network: VideoDiT) -> Course | None:
        """How the view of a stream that begins moves, where noise goes along with it for this network."""
        if self.view_noise(network) is None:
            return None
        if not isinstance(self.text, Navigator):
            raise UserError(
                f"the text encoder '{self.cfg.text}' cannot tell how the view moves; set view_noise to null."
            )
        return self.text.course(seed, self.latent_shape[1])

    def decode_stream(self) -> CodecStream:
        """Latents that were made to what is shown of them."""
        frames = self.codec.decode_stream()
        return SteadyStream(frames, self.codec.time_factor, self.cfg.steady) if self.cfg.steady else frames

    # ---- the causal student ------------------------------------------------------------------------------------

    def session(self, prompt: str, *, seed: int = 0, story: bool = True, **options) -> Session:
        """Start a stream. Options are those of `StreamOptions`: steps, window, sink, relative. What a prompt says comes
        later is told when its time comes, and what it leaves open is named, where the text encoder can do that, unless
        `story` is False."""
        unknown = options.keys() - StreamOptions.__dataclass_fields__.keys()
        if unknown:
            known = ", ".join(StreamOptions.__dataclass_fields__)
            raise UserError(f"a session has no option {', '.join(sorted(unknown))}; it has {known}")
        return Session(self, prompt, seed=seed, options=StreamOptions(**options), story=story)

    # ---- the bidirectional teacher -----------------------------------------------------------------------------

    @torch.no_grad()
    def velocity(self, x_t: Latents, sigma: FrameSigma, text: Text) -> Latents:
        """The plain bidirectional network call; `text` is embedded already."""
        return self.need_teacher()(x_t, sigma, text)

    def sample(
        self,
        prompt: str,
        *,
        seconds: float | None = None,
        steps: int | None = None,
        guidance: flow.Guidance | None = None,
        seed: int = 0,
        renewal: Renewal | None = None,
        named: bool = True,
        on_step: Callable[[int, Latents], None] | None = None,
    ) -> np.ndarray:
        """A whole clip from the teacher, many steps, every frame attending to every other. uint8 [F, H, W, 3].

        `named`: what a prompt leaves open is named, as in a stream (`names`)."""
        told = self.names(prompt, seed) if named else prompt
        latents = self.sample_latents(
            told, seconds=seconds, steps=steps, guidance=guidance, seed=seed, renewal=renewal, on_step=on_step
        )
        with torch.no_grad():
            return frames_from_video(self.decode_stream()(latents.to(self.codec.dtype)))

    def names(self, prompt: str, seed: int) -> str:
        """The prompt with what it leaves open, and would not stay the same, named as the seed chooses."""
        text = self.understand(prompt).text
        return self.text.settle((text,), seed, "")[0] if isinstance(self.text, Settler) else text

    @torch.no_grad()
    def sample_latents(
        self,
        prompt: str,
        *,
        seconds: float | None = None,
        steps: int | None = None,
        guidance: flow.Guidance | None = None,
        seed: int = 0,
        renewal: Renewal | None = None,
        on_step: Callable[[int, Latents], None] | None = None,
    ) -> Latents:
        how = self.cfg.teacher
        guidance = how.guidance if guidance is None else guidance
        steps = how.steps if steps is None else steps
        if steps < 1:
            raise UserError(f"sampling needs at least 1 step, got {steps}")
        shape = (1, self.latents_for(seconds), *self.latent_shape)
        travel, course = None, self.course(seed, self.need_teacher())
        if course is not None:
            travel = course.after(prompt).advance(shape[1])[0][None]
        noise = self.noise(seed, 0, shape, travel)
        field, levels = self.guided(self.embed([prompt]), guidance, travel), flow.sigma_grid(steps, how.shift)
        return sample.euler(field, noise(0), levels, on_step, renewal or how.renewal, noise)

    def noise(self, seed: int, chunk: int, shape: tuple[int, ...], travel: Tensor | None) -> Noise:
        """Of a clip that begins with this chunk of a stream, in a view that moves so."""

        def draw(number: int) -> Latents:
            own = chunk_noise(seed, chunk, number, shape)
            carried = carry_rows(self.cfg.view_noise, own, travel, [(seed, number)])
            return carried.to(device=self.device, dtype=self.dtype)

        return draw

    def latents_for(self, seconds: float | None) -> int:
        """Latent frames whose pixels last at least `seconds`; a training clip where nothing is asked for."""
        if seconds is None:
            return self.cfg.num_latents
        if not 0 < seconds <= 24 * 3600:
            raise UserError(f"a clip lasts more than 0 seconds and less than a day, got {seconds:g}")
        factor = self.codec.time_factor
        frames = max(1, round(seconds * self.cfg.fps))
        return num_latent_frames(1 + -(-(frames - 1) // factor) * factor, factor)

    # ---- weights -----------------------------------------------------------------------------------------------

    def apply_lora(self, adapters: Sequence[str | Path | tuple[str | Path, float]]) -> LoraSet:
        """Merge LoRA files, each with a scale, into whichever network is used; `unload` of the result undoes it."""
        network = self.need_student() if self.student_source else self.need_teacher()
        return LoraSet.apply(network, [a if isinstance(a, tuple) else (a, 1.0) for a in adapters])

    def save(self, folder: str | Path) -> Path:
        """Everything needed to load this model again with `causvid.load(folder)`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.teacher_source:
            save_original(self.need_teacher(), folder / "teacher.safetensors")
        if self.student_source:
            save_original(self.need_student(), folder / "student.safetensors")
        if self.guide_source:
            save_original(self.guide_source(), folder / "guide.safetensors")
        if self.cfg.codec == "vista":
            self.codec.save(folder / "codec.safetensors")  # type: ignore[attr-defined]
        if self.cfg.text == "vista":
            self.text.save(folder / "text.safetensors")  # type: ignore[attr-defined]
        with whole_file(folder / SPEC_FILE) as temporary:
            temporary.write_text(json.dumps(config.to_json(self.cfg), indent=2, ensure_ascii=False) + "\n")
        return folder


@dataclass(frozen=True)
class Place:
    """Where networks go and in which dtype."""

    device: torch.device
    dtype: torch.dtype
    mixed: bool = False  # products in bfloat16, as in training, and the rest in `dtype`

    @classmethod
    def of(cls, device: str | torch.device | None, dtype: torch.dtype | str | None, *, is_small: bool = False) -> Place:
        try:
            where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.zeros(1, device=where)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"cannot use the device '{device}' ({reason}); try device='cpu'") from None
        if isinstance(dtype, str):
            known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
            if dtype not in known:
                raise UserError(f"there is no dtype '{dtype}'; use one of {', '.join(known)}")
            dtype = known[dtype]
        if dtype is None and where.type == "cpu" and is_small:
            # bfloat16 throughout pays from a width of about 512 (docs/log.md), in the products alone at any width;
            # float16 never does
            return cls(where, torch.float32, mixed=torch.cpu._is_avx512_bf16_supported())
        return cls(where, dtype or torch.bfloat16)

    def settle(self, network: VideoDiT) -> VideoDiT:
        settled = network.to(self.device).cast(self.dtype).eval().requires_grad_(False)
        return settled.cast(torch.bfloat16) if self.mixed and settled.cfg.precision == "islands" else settled
