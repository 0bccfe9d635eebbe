"""Named ways to spoil a clip, at a strength in [0, 1], with the severity of every frame.

They are the alphabet of the quality judge's training and the test-suite of every metric: a metric ships with a table of
its responses to these. `jitter`, `ghosting` and `blocks` are never trained on.
"""

from collections.abc import Callable

import numpy as np

TRAINED = ("blur", "noise", "flicker", "freeze", "shuffle", "drop", "saturation", "exposure")
HELD_OUT = ("jitter", "ghosting", "blocks")
NAMES = TRAINED + HELD_OUT

Distorted = tuple[np.ndarray, np.ndarray]  # frames uint8 [F, H, W, 3], severity float32 [F]


def distort(frames: np.ndarray, name: str, strength: float, rng: np.random.Generator) -> Distorted:
    """Frames uint8 [F, H, W, 3]. Strength 1 is unmistakable, 0 changes nothing."""
    if name not in _DISTORTIONS:
        raise ValueError(f"there is no distortion '{name}'; known: {', '.join(NAMES)}")
    if strength == 0:
        return frames.copy(), np.zeros(len(frames), np.float32)
    spoilt, severity = _DISTORTIONS[name](frames, float(strength), rng)
    return spoilt, np.broadcast_to(np.asarray(severity, np.float32), (len(frames),)).copy()


def _to_bytes(frames: np.ndarray) -> np.ndarray:
    return np.clip(np.round(frames), 0, 255).astype(np.uint8)


def blur_frames(frames: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of a float array [..., H, W, 3]."""
    radius = max(1, int(np.ceil(2.5 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (frames.ndim - 3, frames.ndim - 2):
        pad = [(0, 0)] * frames.ndim
        pad[axis] = (radius, radius)
        wide = np.pad(frames, pad, mode="edge")
        size = frames.shape[axis]
        frames = sum(tap * np.take(wide, range(i, i + size), axis) for i, tap in enumerate(taps))  # type: ignore[assignment]
    return frames


Spoilt = tuple[np.ndarray, np.ndarray | float]  # the severity of all frames, or of each


def _blur(frames: np.ndarray, strength: float, rng: np.random.Generator) -> Spoilt:
    return _to_bytes(blur_frames(frames.astype(np.float32), 0.35 + 1.65 * strength)), strength


def _noise(frames: np.ndarray, strength: float, rng: np.random.Generator) -> Spoilt:
    sigma = 2 + 28 * strength
    return _to_bytes(frames + sigma * rng.standard_normal(frames.shape, np.float32)), strength


def _flicker(frames: np.ndarray, strength: float, rng: np.random.Generator) -> Spoilt:
    gain = rng.standard_normal((len(frames), 1, 1, 1)).astype(np.float32)
    return _to_bytes(frames + (2 + 18 * strength) * gain), strength


def _freeze(frames: np.ndarray, strength: float, rng: np.random.Generator) -> Spoilt:
    """The strength is the share of time that stands still, at the end."""
    start = max(1, round(len(frames) * (1 - strength)))
    where = np.minimum(np.arange(len(frames)), start - 1)
    return frames[where], (where < np.arange(len(frames))).astype(np.float32)


def _shuffle(frames: np.ndarray, strength: float, rng: np.random.Generator) -> Spoilt:
    """The order is lost inside groups of 2 to 8 frames."""
    size = round(2 + 6 * strength)
    order = np.concatenate(
        [start + _derangement(min(size, len(frames) - start), rng) for start in range(0, len(frames), size)]
    )
    return frames[order], strength


def _derangement(size: int, rng: np.random.Generator) -> np.ndarray:
    order = rng.permutation(size)
    return np.roll(order, 1) if size > 1 and (order == np.arange(size)).all() else order


def _drop(frames: np.ndarray, strength: float, rng: np.random.Generator) -> Spoilt:
    """Only every 2nd to 5th frame is new."""
    step = round(2 + 3 * strength)
    return frames[np.arange(len(frames)) // step * step], strength


def _ramp(frames: np.ndarray) -> np.ndarray:
    return np.linspace(0, 1, len(frames), dtype=np.float32)[:, None, None, None]


def _saturation(frames: np.ndarray, strength: float, rng: np.random.Generator) -> Spoilt:
    """Colour grows (or fades) with time, as error accumulation does."""
    grows = rng.random() < 0.7
    gain = 1 + (1.6 * strength if grows else -0.9 * strength) * _ramp(frames)
    grey = frames.mean(-1, keepdims=True, dtype=np.float32)
    return _to_bytes(grey + gain * (frames - grey)), strength * _ramp(frames).ravel()


def _exposure(frames: np.ndarray, strength: float, rng: np.random.Generator) -> Spoilt:
    """Light and contrast grow (or sink) with time until highlights clip."""
    brighter = rng.random() < 0.7
    ramp = _ramp(frames) * strength
    spoilt = frames * (1 + 0.8 * ramp) + 25 * ramp if brighter else frames * (1 - 0.6 * ramp) - 15 * ramp
    return _to_bytes(spoilt), ramp.ravel()


def _jitter(frames: np.ndarray, strength: float, rng: np.random.Generator) -> Spoilt:
    """The picture trembles by up to 2.5 pixels."""
    spoilt = np.empty_like(frames)
    for i, frame in enumerate(frames):
        dy, dx = rng.standard_normal(2) * (0.3 + 2.2 * strength) / 2
        spoilt[i] = _to_bytes(_shift(frame.astype(np.float32), dy, dx))
    return spoilt, strength


def _shift(image: np.ndarray, dy: float, dx: float) -> np.ndarray:
    """Bilinear shift with repeated borders."""
    rows, columns = np.arange(image.shape[0]) - dy, np.arange(image.shape[1]) - dx
    for axis, where in enumerate((rows, columns)):
        where = np.clip(where, 0, image.shape[axis] - 1)
        low = np.floor(where).astype(int)
        high = np.minimum(low + 1, image.shape[axis] - 1)
        part = (where - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        image = np.take(image, low, axis) * (1 - part) + np.take(image, high, axis) * part
    return image


def _ghosting(frames: np.ndarray, strength: float, rng: np.random.Generator) -> Spoilt:
    """Every frame keeps a trace of the past."""
    keep = 0.25 + 0.6 * strength
    spoilt, trace = np.empty_like(frames), frames[0].astype(np.float32)
    for i, frame in enumerate(frames):
        trace = keep * trace + (1 - keep) * frame
        spoilt[i] = _to_bytes(trace)
    return spoilt, strength


def _blocks(frames: np.ndarray, strength: float, rng: np.random.Generator) -> Spoilt:
    """Squares of eight pixels lose their detail: what a coarse latent does at its worst."""
    count, height, width, _ = frames.shape
    cells = frames[:, : height // 8 * 8, : width // 8 * 8].astype(np.float32)
    cells = cells.reshape(count, height // 8, 8, width // 8, 8, 3)
    flat = np.broadcast_to(cells.mean((2, 4), keepdims=True), cells.shape)
    mixed = (cells + strength * 0.7 * (flat - cells)).reshape(count, height // 8 * 8, width // 8 * 8, 3)
    spoilt = frames.copy()
    spoilt[:, : mixed.shape[1], : mixed.shape[2]] = _to_bytes(mixed)
    return spoilt, strength


_DISTORTIONS: dict[str, Callable[[np.ndarray, float, np.random.Generator], Spoilt]] = {
    "blur": _blur,
    "noise": _noise,
    "flicker": _flicker,
    "freeze": _freeze,
    "shuffle": _shuffle,
    "drop": _drop,
    "saturation": _saturation,
    "exposure": _exposure,
    "jitter": _jitter,
    "ghosting": _ghosting,
    "blocks": _blocks,
}
