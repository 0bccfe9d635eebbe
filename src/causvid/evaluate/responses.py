"""How every metric answers every named distortion: the test-suite of the metrics themselves."""

from collections.abc import Callable, Sequence

import numpy as np

from causvid.evaluate.distortions import NAMES, distort
from causvid.evaluate.protocol import Prompt, another_truth, truth
from causvid.evaluate.scoring import Instruments, read_clip, score

METRICS = (
    "OC*",
    "CS*",
    "SC*",
    "BC*",
    "MS*",
    "DD*",
    "AQ*",
    "IQ*",
    "naturalness",
    "temporal severity",
    "flicker",
    "warp error",
    "smoothness",
    "sharpness",
    "noise",
    "chroma drift",
    "brightness drift",
    "cadence 2",
    "travelled",
    "unsteadiness",
)


def response_table(
    instruments: Instruments,
    listed: Sequence[Prompt],
    strength: float = 0.6,
    names: Sequence[str] = NAMES,
    on_clip: Callable[[int], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Distortion -> metric -> mean over rendered clips, raw; the first row is "clean".

    The clip and its truth are two layouts of one caption, as they are for a model."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ("clean", *names)}
    for prompt in listed:
        true, clip = read_clip(instruments, truth(prompt)), another_truth(prompt)
        for name in rows:
            frames = clip if name == "clean" else distort(clip, name, strength, np.random.default_rng(prompt.index))[0]
            values, _ = score(read_clip(instruments, frames), prompt.caption, true)
            rows[name].append({metric: abs(v) if metric.endswith("drift") else v for metric, v in values.items()})
        if on_clip is not None:
            on_clip(prompt.index)
    return {name: {m: float(np.nanmean([row[m] for row in r])) for m in METRICS} for name, r in rows.items()} | {
        "spread": {m: float(np.nanstd([row[m] for row in rows["clean"]])) for m in METRICS}
    }


def in_spreads(table: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Each response as its distance from clean, in standard deviations between clean clips."""
    clean, spread = table["clean"], table["spread"]
    return {
        name: {m: (row[m] - clean[m]) / max(spread[m], 1e-3 * abs(clean[m]) + 1e-6) for m in METRICS}
        for name, row in table.items()
        if name not in ("clean", "spread")
    }
