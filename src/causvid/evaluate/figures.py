"""Pictures of reports, drift curves and response tables. Needs Matplotlib, from the extra [eval]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from causvid.atomic import whole_file
from causvid.errors import UserError

if TYPE_CHECKING:
    from causvid.evaluate.drift import Drift
    from causvid.evaluate.report import Report
    from causvid.evaluate.stats import Interval

COLOURS = ("#1f5fa8", "#c8553d", "#3b8a4f", "#8a5fb0", "#b08a2e", "#555555")


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures of reports need Matplotlib: install it with pip install 'causvid[eval]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, path: Path) -> Path:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
    return path


def _bars(axis: Any, values: Mapping[str, Any], title: str, colour: str) -> None:
    """Horizontal bars with intervals, in the given order from the top."""
    names = list(values)
    mid = np.array([v.value for v in values.values()])
    ends = np.abs(np.array([[v.value - v.low, v.high - v.value] for v in values.values()]).T)
    axis.barh(names, mid, xerr=ends, color=colour, height=0.65, error_kw={"elinewidth": 1, "ecolor": "#333333"})
    axis.invert_yaxis()
    axis.set_title(title, fontsize=10, loc="left")
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def draw_report(report: Report, path: Path) -> Path:
    """Calibrated columns (raw ones without anchors) and accuracy per attribute."""
    figure, axes = _figure(9, 0.32 * max(8, len(report.attributes)) + 0.8, 1, 2)
    calibrated = report.calibrated
    columns = calibrated or {name: v for name, v in report.columns.items() if not np.isnan(v.value)}
    _bars(axes[0, 0], columns, "columns, 0 = floor, 100 = ceiling" if calibrated else "columns, raw", COLOURS[0])
    axes[0, 0].set_xlim(0, 105 if calibrated else 1.05)
    _bars(axes[0, 1], report.attributes, f"attributes the captions name ({len(report.rows)} prompts)", COLOURS[2])
    axes[0, 1].set_xlim(0, 1.02)
    return _save(figure, path)


def draw_drift(
    drifts: Mapping[str, Drift],
    path: Path,
    names: tuple[str, ...] = ("IQ*", "accuracy", "distance", "chroma"),
    marks: Mapping[str, float] | None = None,
) -> Path:
    """Curves per second of several models, with bands over videos; the truth dashed, `marks` (seconds) dotted."""
    figure, axes = _figure(10, 5.6, 2, 2)
    for axis, name in zip(axes.flat, names):
        for colour, (label, drift) in zip(COLOURS, drifts.items()):
            mean, low, high = drift.mean(name)
            seconds = np.arange(len(mean)) + 0.5
            axis.plot(seconds, mean, color=colour, label=label, linewidth=1.6)
            axis.fill_between(seconds, low, high, color=colour, alpha=0.18, linewidth=0)
        first = next(iter(drifts.values()))
        if first.true is not None:
            true = np.nanmean(first.true[name], 0)
            axis.plot(
                np.arange(len(true)) + 0.5, true, color="#222222", linestyle="--", linewidth=1, label="ground truth"
            )
        for label, second in (marks or {}).items():
            axis.axvline(second, color="#888888", linestyle=":", linewidth=1)
            axis.text(second, axis.get_ylim()[1], f" {label}", fontsize=7, va="top", color="#666666")
        axis.set_title(name, fontsize=10, loc="left")
        axis.set_xlabel("seconds", fontsize=8)
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes.flat[0].legend(fontsize=8, frameon=False)
    return _save(figure, path)


def draw_curve(columns: Mapping[str, Sequence[tuple[float, Interval]]], path: Path, axis_name: str) -> Path:
    """Calibrated columns against what a model had learnt from, with intervals over prompts."""
    figure, axes = _figure(6.4, 3.6)
    axis = axes[0, 0]
    for colour, (title, points) in zip(COLOURS, columns.items()):
        places = [place for place, _ in points]
        axis.plot(places, [value.value for _, value in points], color=colour, marker="o", markersize=4, label=title)
        axis.fill_between(
            places, [v.low for _, v in points], [v.high for _, v in points], color=colour, alpha=0.15, linewidth=0
        )
    axis.set_xlabel(axis_name, fontsize=9)
    axis.set_ylabel("0 = floor, 100 = ceiling", fontsize=9)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    return _save(figure, path)


def draw_responses(table: Mapping[str, Mapping[str, float]], path: Path, title: str) -> Path:
    """A response table as coloured cells: distortions by metrics, in units of the clean clips' spread."""
    rows, columns = list(table), list(next(iter(table.values())))
    values = np.array([[table[r][c] for c in columns] for r in rows])
    figure, axes = _figure(1.6 + 0.72 * len(columns), 1.2 + 0.3 * len(rows))
    axis = axes[0, 0]
    axis.imshow(np.sign(values) * np.log1p(np.abs(values)), cmap="RdBu_r", vmin=-4, vmax=4, aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    for (i, j), value in np.ndenumerate(values):
        strong = abs(np.log1p(abs(value))) > 2.6
        axis.text(j, i, f"{value:+.1f}" if abs(value) < 99.5 else f"{value:+.0f}", ha="center", va="center", fontsize=7,
                  color="white" if strong else "#222222")  # fmt: skip
    axis.set_title(title, fontsize=10, loc="left")
    return _save(figure, path)
