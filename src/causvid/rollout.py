"""Few-step generation chunk by chunk (Algorithm 2): the one loop that scripts, server, evaluation and training use.

A chunk starts as noise. At each level the student predicts x0, which is noised again to the next level with fresh
noise. The finished chunk is committed by one more pass at sigma 0, and that pass is deferred: a chunk is handed out
first and committed when the next one is asked for, or earlier by whoever has time to spare.

The loop is written as generators that ask for one pass of the network at a time and are sent its result. `drive`
answers one stream; a server answers many with one batch.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from causvid import flow
from causvid.cache import FULL, CachePolicy, KVCache, Past, PastOfMany
from causvid.errors import UserError
from causvid.models.dit import TextMemory, VideoDiT
from causvid.noise import chunk_noise
from causvid.shapes import FrameSigma, Latents, Text
from causvid.view_noise import ViewNoise, carry_rows

Draw = Callable[[int], Tensor]  # draw index -> noise of the chunk's shape
Network = Callable[..., Tensor]  # (x_t, sigma, text, past=...) -> v
T = TypeVar("T")

PromptMode = Literal["keep", "recache", "flush"]


@dataclass(frozen=True)
class Pass:
    """One evaluation of the network, asked for by a stream; the answer is v."""

    x: Latents
    sigma: FrameSigma
    text: Text | TextMemory
    past: Past | PastOfMany | None

    def run(self, model: Network) -> Latents:
        return model(self.x, self.sigma, self.text, past=self.past)


Passes = Generator[Pass, Latents, T]  # asks for passes, is sent their results, ends in a T

Turns = Generator[Pass | None, Any, T]  # the same, and None gives way to other streams: nothing is sent for it


@torch.no_grad()
def drive(model: Network, passes: Turns[T]) -> T:
    """Answer every pass with this network, and return what the stream makes of them."""
    try:
        wanted = next(passes)
        while True:
            wanted = passes.send(None if wanted is None else wanted.run(model))
    except StopIteration as end:
        return end.value


def denoise_passes(
    x: Latents, sigmas: Sequence[float], text: Text | TextMemory, draw: Draw, past: Past | PastOfMany | None
) -> Passes[Latents]:
    """x at sigmas[0] -> x0."""
    for step, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        level = torch.full(x.shape[:2], sigma, device=x.device)
        x = flow.x0_from_velocity(x, (yield Pass(x, level, text, past)), level)
        if sigma_next > 0:
            x = flow.add_noise(x, draw(step + 1).to(x), torch.full_like(level, sigma_next))
    return x


def edit_passes(
    source: Latents,
    of: Text | TextMemory,
    sigmas: Sequence[float],
    text: Text | TextMemory,
    draw: Draw,
    past: Past,
) -> Passes[Latents]:
    """A clean chunk that shows `of` -> one that shows `text`, alike where the two agree.

    Both chunks are noised alike, and the source goes along what the network tells them apart by, so that its mistakes
    about the source cancel out (FlowEdit, Kulikov et al. 2024). The source is seen alone: no second cache is kept."""
    x, alone = source, replace(past, alone=True)
    for step, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        level = torch.full(x.shape[:2], sigma, device=x.device)
        noised = flow.add_noise(source, draw(step).to(x), level)
        v_source = yield Pass(noised, level, of, alone)
        v = yield Pass(noised + x - source, level, text, past)
        x = x + (sigma_next - sigma) * (v - v_source)
    return x


def commit_passes(x0: Latents, text: Text | TextMemory, past: Past | PastOfMany) -> Passes[None]:
    """The clean pass: fill the chunk's slots with keys of its final frames and make it part of the past."""
    yield Pass(x0, torch.zeros(x0.shape[:2], device=x0.device), text, past)
    past.commit()


def denoise_chunk(
    model: Network,
    x: Latents,
    sigmas: Sequence[float],
    text: Text | TextMemory,
    draw: Draw,
    *,
    past: Past | PastOfMany | None = None,
    grad_step: int | None = None,
) -> Latents:
    """x at sigmas[0] -> x0. With `grad_step`, a training roll-out: gradients flow through that step only, and it is the
    last one taken."""
    if grad_step is None:
        return drive(model, denoise_passes(x, sigmas, text, draw, past))
    # the step with gradients starts where the others, cut short at its level, end
    passes = denoise_passes(x, sigmas, text, draw, past)
    with torch.no_grad():
        wanted = next(passes)
        for _ in range(grad_step):
            wanted = passes.send(wanted.run(model))
    with torch.enable_grad():
        return flow.x0_from_velocity(wanted.x, wanted.run(model), wanted.sigma)


def commit_chunk(model: Network, x0: Latents, text: Text | TextMemory, past: Past | PastOfMany) -> None:
    drive(model, commit_passes(x0, text, past))


@dataclass(frozen=True)
class RolloutConfig:
    """How a student is run. Comes with its weights."""

    sigmas: tuple[float, ...]  # decreasing, ends in 0
    chunk: int  # latent frames per chunk
    shift: float | None = None  # where `sigmas` is a shifted grid: other numbers of steps can then be asked for
    first_chunk: int | None = None  # where the first chunk has another size
    first_sigmas: tuple[float, ...] | None = None  # where the first chunk takes other steps
    policy: CachePolicy = FULL
    max_frames: int = 21  # capacity of a cache without a window

    def with_steps(self, num_steps: int) -> "RolloutConfig":
        """The same schedule with another number of steps."""
        if num_steps == len(self.sigmas) - 1:
            return self
        if self.shift is None:
            raise UserError(
                f"this student was distilled for its own list of {len(self.sigmas) - 1} steps and has no others; "
                f"leave out the number of steps, or use {len(self.sigmas) - 1}"
            )
        if num_steps < 1:
            raise UserError(f"a chunk needs at least 1 step, got {num_steps}")
        return replace(self, sigmas=tuple(flow.sigma_grid(num_steps, self.shift)), first_sigmas=None)

    def chunk_size(self, at_start: bool) -> int:
        return self.first_chunk or self.chunk if at_start else self.chunk

    def chunk_sigmas(self, at_start: bool) -> tuple[float, ...]:
        return self.first_sigmas or self.sigmas if at_start else self.sigmas


@dataclass
class Made:
    """A chunk that is finished, and what is needed to commit it again."""

    latents: Latents
    text: Text | TextMemory
    index: int  # of the chunk in its stream
    travel: Tensor | None = None  # how far the view had come at its frames


@dataclass(frozen=True)
class RolloutState:
    """A moment of a stream, to go back to. Nothing in it is written again."""

    cache: dict
    chunk_index: int
    pending: Made | None
    in_sight: tuple[Made, ...]


def _covering(chunks: Sequence[Made], num_frames: int) -> int:
    """How many chunks, from the front, it takes to hold `num_frames`; all of them if they hold fewer."""
    total = 0
    for count, made in enumerate(chunks):
        if total >= num_frames:
            return count
        total += made.latents.shape[1]
    return len(chunks)


@dataclass
class Rollout:
    """A stream of one batch of clips: the cache, the chunk that waits for its commit, and the chunks still in sight."""

    model: VideoDiT
    cfg: RolloutConfig
    latent_shape: tuple[int, int, int]  # channels, height, width
    seeds: Sequence[int] = (0,)  # one per clip of the batch
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    view_noise: ViewNoise | None = None
    cache: KVCache = field(init=False)
    chunk_index: int = field(init=False, default=0)
    _pending: Made | None = field(init=False, default=None)
    _in_sight: list[Made] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        # fail before the first chunk, not when the window first fills up
        self.cfg.policy.check(max(self.cfg.chunk, self.cfg.first_chunk or 0))
        self.cache = KVCache(
            self.model.cache_shape(*self.latent_shape[1:]),
            self.cfg.policy,
            batch=len(self.seeds),
            max_frames=self.cfg.max_frames,
            dtype=self.dtype,
            device=self.device,
        )

    def step(
        self,
        text: Text | TextMemory,
        *,
        start: Latents | None = None,
        of: Text | TextMemory | None = None,
        sigmas: Sequence[float] | None = None,
        noise: Latents | None = None,
        travel: Tensor | None = None,
        carry: bool = True,
    ) -> Latents:
        """The next chunk, given the prompt in force. Hands it out uncommitted.

        `sigmas` replaces the step list of this chunk. `start` is a clean chunk to begin from, noised to sigmas[0]
        (video-to-video); with `of`, the words for what it shows, it is edited and not drawn anew. `noise` replaces the
        noise that the seed gives. `travel` [K] is how far the view has come, in latents to the right; with `carry` the
        noise of models that know of it goes along.
        """
        passes = self.step_passes(text, start=start, of=of, sigmas=sigmas, noise=noise, travel=travel, carry=carry)
        return drive(self.model, passes)

    def step_passes(
        self,
        text: Text | TextMemory,
        *,
        start: Latents | None = None,
        of: Text | TextMemory | None = None,
        sigmas: Sequence[float] | None = None,
        noise: Latents | None = None,
        travel: Tensor | None = None,
        carry: bool = True,
    ) -> Passes[Latents]:
        """`step`, for who runs the network themselves. So are the other methods that end in `_passes`."""
        yield from self.settle_passes()
        at_start = self.cache.num_frames == 0
        shape = (self.cfg.chunk_size(at_start), *self.latent_shape)
        if start is not None and start.shape[1] != shape[0]:
            raise UserError(
                f"a source of {start.shape[1]} latent frames is no chunk of {shape[0]}; "
                "use a student, or a recipe, of the chunk size it was recorded with"
            )
        levels = tuple(sigmas or self.cfg.chunk_sigmas(at_start))
        along = travel if carry else None
        x = self._noise(shape, 0, along) if noise is None else noise.to(device=self.device, dtype=self.dtype)
        past = self._at_hand(x.shape[1], travel)

        def draw(number: int) -> Tensor:
            return x if number == 0 else self._noise(shape, number, along)

        if start is not None and of is not None:
            x0 = yield from edit_passes(start.to(x), of, levels, text, draw, past)
        else:
            if start is not None:
                x = flow.add_noise(start.to(x), x, torch.full(x.shape[:2], levels[0], device=self.device))
            x0 = yield from denoise_passes(x, levels, text, draw, past)
        self._pending = Made(x0, text, self.chunk_index, travel)
        self.chunk_index += 1
        return x0

    def feed(self, latents: Latents, text: Text | TextMemory, travel: Tensor | None = None) -> None:
        """Take a given clean chunk as the next one: an image to animate, a video to extend."""
        drive(self.model, self.feed_passes(latents, text, travel))

    def feed_passes(self, latents: Latents, text: Text | TextMemory, travel: Tensor | None = None) -> Passes[None]:
        yield from self.settle_passes()
        self._pending = Made(latents.to(device=self.device, dtype=self.dtype), text, self.chunk_index, travel)
        self.chunk_index += 1

    def amend(self, latents: Latents) -> None:
        """Go on from other latents than those handed out last."""
        assert self._pending is not None, "the chunk is committed already"
        self._pending = replace(self._pending, latents=latents.to(self._pending.latents))

    def settle(self) -> None:
        """Commit the chunk that was handed out last, if it is not committed yet."""
        drive(self.model, self.settle_passes())

    def settle_passes(self) -> Passes[None]:
        if self._pending is not None:
            yield from self._commit(self._pending)
            self._pending = None

    def recache(self, text: Text | TextMemory) -> None:
        """Recompute what is remembered as if it had been made under `text`: the look stays, the new words take hold."""
        drive(self.model, self.recache_passes(text))

    def recache_passes(self, text: Text | TextMemory) -> Passes[None]:
        yield from self.settle_passes()
        in_sight = self._in_sight
        self.flush()
        for made in in_sight:
            yield from self._commit(replace(made, text=text))

    def flush(self) -> None:
        """Forget everything but the chunk count: the next chunk starts a new shot."""
        self._pending = None
        self._in_sight = []
        self.cache.clear()

    @property
    def in_sight(self) -> tuple[int, ...]:
        """Indices of the committed chunks that `recache` would commit again, oldest first."""
        return tuple(made.index for made in self._in_sight)

    def save(self) -> RolloutState:
        return RolloutState(self.cache.snapshot(), self.chunk_index, self._pending, tuple(self._in_sight))

    def load(self, state: RolloutState) -> None:
        """Go back to a moment of this stream, or go on from a moment of another one of the same sizes and policy."""
        self.cache.restore(state.cache)
        self.chunk_index, self._pending, self._in_sight = state.chunk_index, state.pending, list(state.in_sight)

    def skip(self, num_frames: int) -> None:
        """Count frames as committed that are not: a window forgets, and after `frames_that_matter` more frames nothing
        tells the difference."""
        drive(self.model, self.skip_passes(num_frames))

    def skip_passes(self, num_frames: int) -> Passes[None]:
        yield from self.settle_passes()
        self.cache.num_frames += num_frames

    def frames_that_matter(self) -> int | None:
        """The next chunk is a function of this many frames before it (and the sink); None: of all of them.

        A key of layer l was made from a window of keys of layer l - 1, and so on down."""
        window, layers = self.cfg.policy.window, self.cache.shape.num_layers
        return None if window is None else layers * window

    def _commit(self, made: Made) -> Passes[None]:
        yield from commit_passes(made.latents, made.text, self._at_hand(made.latents.shape[1], made.travel))
        self._in_sight.append(made)
        policy = self.cfg.policy
        if policy.window is None:
            return
        # the chunks that hold the sink stay, and the newest that fill the rest of the window
        num_sink = _covering(self._in_sight, policy.sink)
        recent = self._in_sight[num_sink:]
        num_recent = _covering(recent[::-1], policy.window - policy.sink)
        self._in_sight = self._in_sight[:num_sink] + recent[len(recent) - num_recent :]

    def _at_hand(self, num_frames: int, travel: Tensor | None) -> Past:
        return self.cache.at_hand(num_frames, None if travel is None else travel[None].to(self.device))

    def _noise(self, shape: tuple[int, ...], draw: int, travel: Tensor | None) -> Tensor:
        noise = torch.stack([chunk_noise(seed, self.chunk_index, draw, shape) for seed in self.seeds])
        if travel is not None:
            noise = carry_rows(self.view_noise, noise, travel[None], [(seed, draw) for seed in self.seeds])
        return noise.to(device=self.device, dtype=self.dtype)
