"""Two reports, prompt by prompt: the same words, noise and instruments, so the differences are paired."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from causvid.errors import UserError
from causvid.evaluate import stats
from causvid.evaluate.report import TITLES, Report, aligned, compare
from causvid.flow import GuidanceSteps
from causvid.sample import Renewal


def shared(a: Report, b: Report) -> tuple[Report, Report]:
    """Both on the prompts that the shorter one has; a longer list of a suite begins with the shorter one."""
    if a.about["instruments"] != b.about["instruments"]:
        raise UserError(
            f"the reports were made by different instruments ({_ids(a)} against {_ids(b)}); evaluate both again"
        )
    count = min(len(a.rows), len(b.rows))
    if a.captions[:count] != b.captions[:count]:
        raise UserError("the reports are about different prompts; evaluate both models with the same --split")
    first, second = (
        replace(r, captions=r.captions[:count], rows=r.rows[:count], right=r.right[:count]) for r in (a, b)
    )
    return first, second


def _ids(report: Report) -> str:
    return ", ".join(f"{name} {hash}" for name, hash in report.about["instruments"].items())


def compare_reports(a: Path, b: Path) -> str:
    """A table of a, b and a - b with 95 % intervals over prompts; a star where the interval leaves 0 out."""
    first, second = shared(Report.load(a), Report.load(b))
    values = {**first.columns, **first.metrics}
    others = {**second.columns, **second.metrics}
    rows = [["", "A", "B", "A - B", "95 %", ""]]
    for name in [name for name in values if name in others]:  # an older report may lack what is newer
        gap = compare(first, second, name)
        if np.isnan(gap.value):
            continue
        clear = "*" if gap.low > 0 or gap.high < 0 else ""
        rows.append([TITLES.get(name, name), f"{values[name].value:.4f}", f"{others[name].value:.4f}",
                     f"{gap.value:+.4f}", f"{gap.low:+.4f} to {gap.high:+.4f}", clear])  # fmt: skip
    passed = [[row["all right"] == 1 for row in report.rows] for report in (first, second)]
    chance = stats.mcnemar(*passed)
    head = f"A: {_named(first)}\nB: {_named(second)}\n{len(first.rows)} prompts of {first.about['suite']}\n\n"
    tail = f"\n\neverything right in {sum(passed[0])} and {sum(passed[1])} clips: p = {chance:.3g} (McNemar)"
    return head + aligned(rows) + tail


def curve_of(points: Sequence[tuple[float, Path]]) -> dict[str, list[tuple[float, stats.Interval]]]:
    """The calibrated columns of reports at these places of an axis, on the prompts that all of them have."""
    places = sorted(points)
    reports = [Report.load(path) for _, path in places]
    shortest = min(reports, key=lambda report: len(report.rows))
    cut = [shared(report, shortest)[0] for report in reports]
    return {
        title: [
            (place, report.calibrated[name]) for (place, _), report in zip(places, cut) if name in report.calibrated
        ]
        for name, title in TITLES.items()
    }


def _named(report: Report) -> str:
    settings = report.about["settings"]
    guidance = settings["guidance"]
    guidance = GuidanceSteps(**guidance) if isinstance(guidance, dict) else guidance
    how = "" if guidance is None else f", guidance {guidance:g}"
    renewal = Renewal(**settings.get("renewal", {}))
    how += f", {renewal}" if renewal.eta else ""
    return f"{settings['model']} ({settings['role']}, {settings['steps']} steps{how})"
