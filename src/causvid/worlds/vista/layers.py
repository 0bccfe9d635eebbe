"""Scrolling strips under changing light, laid into the picture frame by frame while each frame is in the cache."""

from dataclasses import dataclass

import numpy as np

from causvid.worlds.vista.canvas import F32, Strip
from causvid.worlds.vista.truth import Labels


@dataclass
class Moments:
    """Frames grouped by equal light: `which` [F] says which of the N distinct moments each frame shows."""

    which: np.ndarray
    groups: list[np.ndarray]

    @staticmethod
    def of(*series: np.ndarray) -> tuple["Moments", np.ndarray]:
        """Group frames by the values of all series [F]; the second result has the distinct values [N, len(series)]."""
        table = np.round(np.stack(series, 1).astype(np.float64), 6)
        values, which = np.unique(table, axis=0, return_inverse=True)
        which = which.reshape(-1)
        return Moments(which, [np.flatnonzero(which == k) for k in range(len(values))]), values


def scroll(
    image: np.ndarray,
    strip: Strip,
    left: np.ndarray,
    moments: Moments,
    gain: np.ndarray,
    haze: np.ndarray,
    night: np.ndarray,
    labels: Labels | None = None,
    thick: np.ndarray | None = None,
    floor: int | None = None,
) -> None:
    """Lay a strip, the picture's left edge at world x `left` [F]. Per moment: colour * gain + haze, plus night lights.

    gain, haze: [N, 3] (haze is per unit of coverage); night: [N]. `thick` [N] thins the whole strip out; rows from
    `floor` on are hidden by nearer strips and need not be drawn.
    """
    used = np.flatnonzero(strip.alpha[:floor].any(1))
    if not len(used):
        return
    rows = slice(int(used[0]), int(used[-1]) + 1)
    solid = solid_from(strip) - rows.start if thick is None else rows.stop
    width = strip.view.width
    half = np.round(left * strip.view.scale * 2).astype(int) - 2 * strip.first  # in half pixels: two samples a pixel
    for moment, frames in enumerate(moments.groups):
        if thick is not None and thick[moment] < 0.01:
            continue
        low, high = int(half[frames].min()), int(half[frames].max()) + 2 * width
        cut = slice(low, high)
        alpha = strip.alpha[rows, cut]
        lit = strip.rgb[:, rows, cut] * gain[moment][:, None, None]
        lit += alpha * haze[moment][:, None, None]
        if strip.glow is not None and night[moment] > 0:
            lit += strip.glow[:, rows, cut] * night[moment]
        keep = 1 - alpha
        if thick is not None:
            lit *= thick[moment]
            keep = 1 - alpha * thick[moment]
        phases: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for phase in {int(h - low) & 1 for h in half[frames]}:
            even = slice(phase, phase + (high - low - phase) // 2 * 2)
            phases[int(phase)] = (_pairs(keep[:solid, even]), _pairs(lit[:, :, even]))
        for i in frames:
            phase, x = int(half[i] - low) & 1, int(half[i] - low) >> 1
            below, above = phases[phase]
            part = image[i][:, rows]
            part[:, :solid] *= below[:, x : x + width]
            part[:, :solid] += above[:, :solid, x : x + width]
            part[:, solid:] = above[:, solid:, x : x + width]
            if labels is not None and int(i) in labels.row_of:
                samples = slice(int(half[i]), int(half[i]) + 2 * width, 2)
                labels.stamp(int(i), rows, slice(None), strip.alpha[rows, samples] > 0.5, strip.kind[rows, samples])


def solid_from(strip: Strip) -> int:
    """The first row from which on the strip hides everything behind it."""
    gaps = np.flatnonzero(strip.alpha.min(1) < 1)
    return int(gaps[-1]) + 1 if len(gaps) else 0


def _pairs(samples: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(F32(0.5) * (samples[..., 0::2] + samples[..., 1::2]))
