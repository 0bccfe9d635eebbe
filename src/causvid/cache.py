"""What the past is: keys and values of committed frames, with two verbs.

    look_back   attend to the past and to the chunk at hand; repeatable, as every denoising pass does it
    commit      the chunk at hand becomes part of the past; once per chunk, after its clean pass

One buffer is allocated up front: [sink frames | ring of recent frames]. The chunk being denoised owns the ring slots of
the frames that have just left its window, so nothing is ever concatenated or moved, an endless stream keeps the same
memory, and once the ring is full every step has the same shapes. Keys are stored rotated by their absolute frame
number; attention does not care about order, only about differences of position.

A backward pass that computes layers again reads the past a second time, after later chunks. Training therefore has a
buffer of every frame of a clip (`keep_all`), in which nothing is written over; the window then limits sight alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from causvid.chunks import Span, check_window, visible_spans
from causvid.rope import shift_in_time

Seen = tuple[slice, Tensor, Tensor]  # rows of the batch, with the keys and values they attend to [b, M, N, E]


@dataclass(frozen=True)
class CachePolicy:
    """What a chunk remembers. `FULL` remembers everything, up to the capacity the cache is given."""

    window: int | None = None  # latent frames a chunk sees, itself and the sink included; None = all
    sink: int = 0  # first frames of the stream, never forgotten
    relative: bool = False  # place the sink directly before the window instead of ever further away

    def check(self, chunk: int) -> None:
        if self.window is not None:
            check_window(chunk, self.window, self.sink)


FULL = CachePolicy()


@dataclass(frozen=True)
class CacheShape:
    """The sizes of a network that a cache must match."""

    num_layers: int
    num_heads: int
    head_width: int
    tokens_per_frame: int


class KVCache:
    """Keys and values [layers, B, M, N, E] of one batch of streams that move in step."""

    def __init__(
        self,
        shape: CacheShape,
        policy: CachePolicy = FULL,
        *,
        batch: int = 1,
        max_frames: int | None = None,
        keep_all: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        """`max_frames` is the capacity of a policy without a window, and of a cache that is to `keep_all` frames; else
        the window is the capacity."""
        capacity = max_frames if policy.window is None or keep_all else policy.window
        if capacity is None:
            raise ValueError("a cache that forgets nothing needs max_frames, the longest stream it must hold")
        check_window(1, policy.window or capacity, policy.sink)
        self.shape, self.policy, self.capacity, self.keep_all = shape, policy, capacity, keep_all
        self.num_frames = 0  # frames committed since the start of the stream
        size = (shape.num_layers, batch, capacity * shape.tokens_per_frame, shape.num_heads, shape.head_width)
        # nothing is seen that was not written before: memory that a stream never comes to is never touched
        self._keys = torch.empty(size, dtype=dtype, device=device)
        self._values = torch.empty(size, dtype=dtype, device=device)
        self._sink_keys: Tensor | None = None  # as first rotated, for policies that re-base the sink
        self._sink_shift = 0

    @property
    def dtype(self) -> torch.dtype:
        return self._keys.dtype

    @property
    def batch(self) -> int:
        return self._keys.shape[1]

    @property
    def nbytes(self) -> int:
        sink = 0 if self._sink_keys is None else self._sink_keys.nbytes
        return self._keys.nbytes + self._values.nbytes + sink

    @property
    def first_frames(self) -> list[int]:
        """Frame number of the next chunk, as the rotation wants it."""
        return [self.num_frames]

    def at_hand(self, num_frames: int, travel: Tensor | None = None) -> "Past":
        """The view that a chunk of `num_frames` has. It stays valid while later chunks are appended to a full cache.
        `travel` [B, T]: how far the view has come at each of them."""
        start, stop = self.num_frames, self.num_frames + num_frames
        policy = self.policy
        if (policy.window is None or self.keep_all) and stop > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} frames and the stream wants frame {stop - 1}; "
                "give it a window, or a larger max_frames"
            )
        if policy.window is not None:
            check_window(num_frames, policy.window, policy.sink)
        if policy.relative and policy.sink and not self.keep_all:
            self._rebase_sink(stop)
        runs = [torch.arange(run.start, run.stop, device=self._keys.device) for run in self.slots(start, stop)]
        num_seen = min(stop, self.capacity) * self.shape.tokens_per_frame
        return Past(self, start, stop, torch.cat(runs), num_seen, travel)

    def commit(self, num_frames: int) -> None:
        """What the last pass left in the slots of the chunk at hand is the past from now on."""
        sink, before = self.policy.sink, self.num_frames
        self.num_frames += num_frames
        if self.policy.relative and not self.keep_all and before < sink <= self.num_frames:
            self._sink_keys = self._keys[:, :, : sink * self.shape.tokens_per_frame].clone()

    def clear(self) -> None:
        """Forget everything; the next chunk is frame 0 again."""
        self.num_frames, self._sink_keys, self._sink_shift = 0, None, 0

    def snapshot(self) -> dict[str, Tensor | int | None]:
        """A copy of the state, to go back to with `restore`."""
        return {
            "keys": self._keys.clone(),
            "values": self._values.clone(),
            "sink_keys": None if self._sink_keys is None else self._sink_keys.clone(),
            "sink_shift": self._sink_shift,
            "num_frames": self.num_frames,
        }

    def restore(self, state: dict) -> None:
        self._keys.copy_(state["keys"])
        self._values.copy_(state["values"])
        self._sink_keys = None if state["sink_keys"] is None else state["sink_keys"].clone()
        self._sink_shift, self.num_frames = state["sink_shift"], state["num_frames"]

    def slots(self, start: int, stop: int) -> list[slice]:
        """Where frames [start, stop) live, in tokens: one run, or two where the ring wraps or the sink ends."""
        ring = self.capacity - self.policy.sink
        runs: list[list[int]] = []
        for frame in range(start, stop):
            slot = frame if frame < self.policy.sink else self.policy.sink + (frame - self.policy.sink) % ring
            if runs and runs[-1][1] == slot:
                runs[-1][1] += 1
            else:
                runs.append([slot, slot + 1])
        size = self.shape.tokens_per_frame
        return [slice(first * size, last * size) for first, last in runs]

    def _rebase_sink(self, stop: int) -> None:
        """Turn the sink so that it stands right before the window of the chunk that ends at `stop`."""
        shift = max(0, stop - self.capacity)
        if shift != self._sink_shift and self._sink_keys is not None:
            tokens = self._sink_keys.shape[2]
            # always from the first rotation, so that errors do not add up over a long stream
            self._keys[:, :, :tokens] = shift_in_time(self._sink_keys, shift)
            self._sink_shift = shift


@dataclass(frozen=True)
class Past:
    """What one chunk at hand sees: a cache and the frames [start, stop) that are being denoised.

    Where the chunk's own tokens go is a tensor and how many are seen is constant once the window is full, so a compiled
    step neither sees the stream's length nor compiles again as it grows.
    """

    cache: KVCache
    start: int
    stop: int
    own: Tensor  # the chunk's token slots
    num_seen: int  # tokens attended to, from slot 0
    travel: Tensor | None = None  # [B, T], where networks know places in the world
    alone: bool = False  # the chunk is seen at its place in time, but nothing before it

    @property
    def first_frames(self) -> list[int]:
        return [self.start]

    @property
    def dtype(self) -> torch.dtype:
        return self.cache.dtype

    def look_back(self, layer: int, k_BLNE: Tensor, v_BLNE: Tensor) -> Iterator[Seen]:
        if self.alone:
            yield slice(None), k_BLNE.to(self.dtype), v_BLNE.to(self.dtype)
            return
        keys, values = self.cache._keys[layer], self.cache._values[layer]
        # In training the past is constant and the present carries gradients: the buffer stays untouched.
        learns = torch.is_grad_enabled() and (k_BLNE.requires_grad or v_BLNE.requires_grad)
        if not learns:
            keys.index_copy_(1, self.own, k_BLNE.to(self.dtype))
            values.index_copy_(1, self.own, v_BLNE.to(self.dtype))
        if not learns and not self._beyond_window:
            yield slice(None), keys[:, : self.num_seen], values[:, : self.num_seen]
            return
        runs = [run for span in self._past_spans() for run in self.cache.slots(*span)]
        past_keys, past_values = [keys[:, run] for run in runs], [values[:, run] for run in runs]
        if self._beyond_window and self.cache.policy.relative and self.cache.policy.sink:
            past_keys[0] = shift_in_time(past_keys[0], self._beyond_window)
        yield (
            slice(None),
            torch.cat([*past_keys, k_BLNE.to(self.dtype)], dim=1),
            torch.cat([*past_values, v_BLNE.to(self.dtype)], dim=1),
        )

    @property
    def _beyond_window(self) -> int:
        """How many frames the buffer holds that are out of sight."""
        window = self.cache.policy.window
        return 0 if window is None or not self.cache.keep_all else max(0, self.stop - window)

    def _past_spans(self) -> list[Span]:
        """The committed frames in sight."""
        spans = visible_spans((self.start, self.stop), self.cache.policy.window, self.cache.policy.sink)
        return [(first, min(last, self.start)) for first, last in spans if first < self.start]

    def commit(self) -> None:
        self.cache.commit(self.stop - self.start)


class PastOfMany:
    """Streams at different places in time, stepped as one batch: every row looks back at its own cache."""

    def __init__(self, pasts: Iterable[Past]) -> None:
        self.pasts = list(pasts)

    @property
    def first_frames(self) -> list[int]:
        return [past.start for past in self.pasts]

    @property
    def travel(self) -> Tensor | None:
        ways = [past.travel for past in self.pasts if past.travel is not None]
        return torch.cat(ways) if ways else None

    @property
    def dtype(self) -> torch.dtype:
        return self.pasts[0].dtype

    def look_back(self, layer: int, k_BLNE: Tensor, v_BLNE: Tensor) -> Iterator[Seen]:
        for row, past in enumerate(self.pasts):
            rows = slice(row, row + 1)
            for _, keys, values in past.look_back(layer, k_BLNE[rows], v_BLNE[rows]):
                yield rows, keys, values

    def commit(self) -> None:
        for past in self.pasts:
            past.commit()
