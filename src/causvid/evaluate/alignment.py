"""Does a clip show what its caption asks for? Every attribute that the caption names is one item; nothing else counts.

An event ("then night falls") has no stated time. The switch is put where the clip fits the caption best, the same
favour for every clip; the items are then the attribute before and after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from causvid.evaluate.formulas import mid_frames
from causvid.evaluate.judge_data import CONSTANT, TIMED, VALUES
from causvid.evaluate.judges import Reading
from causvid.worlds.vista.parsing import parse_caption, phases

TRANSITION = 5  # stacks after the start of an event that are not scored: it takes 1 to 1.6 s
SHORTEST = 2  # stacks of a phase that can be scored: an event may come after half a second
RENAMED = {"second hero": "second", "second colour": "second colour"}


@dataclass(frozen=True)
class Wanted:
    """What a caption asks for: constants, and the timed attributes in each phase between events (None is open)."""

    constant: dict[str, str]
    phases: tuple[dict[str, str | None], ...]
    events: tuple[tuple[str, str], ...]
    unknown: tuple[str, ...]


class Item(NamedTuple):
    """Probability that one wanted thing is there, and whether it is the judge's first answer."""

    name: str
    probability: float
    right: bool


def wanted(caption: str) -> Wanted:
    parsed = parse_caption(caption)
    constant = {RENAMED.get(n, n): v for n, v in parsed.attributes.items() if RENAMED.get(n, n) in CONSTANT}
    return Wanted(
        constant,
        tuple(phases(parsed.attributes, parsed.events)),
        tuple(parsed.events),
        tuple(word for word, _ in parsed.unknown),
    )


def items(want: Wanted, reading: Reading) -> list[Item]:
    """One item per named constant, per named timed attribute without event, and two per event (before and after)."""
    found = [_item(name, reading.probabilities(name), value) for name, value in want.constant.items()]
    stretches = locate(want, reading)
    for name in TIMED:
        values = [phase[name] for phase in want.phases]
        if len(set(values)) == 1:
            if values[0] is not None:
                found.append(_item(name, reading.probabilities(name), values[0]))
            continue
        for phase, (before, after) in enumerate(zip(values[:-1], values[1:]), start=1):
            if before == after or after is None:
                continue
            earlier, later = (reading.probabilities(name, stretches[p]) for p in (phase - 1, phase))
            index = VALUES[name].index(after)
            if before is not None:
                found.append(_item(f"{name} before", earlier, before))
            else:  # it must at least not have been there before it comes
                missing = 1 - float(earlier[index])
                found.append(Item(f"{name} before", missing, bool(earlier.argmax() != index)))
            found.append(_item(f"{name} after", later, after))
    return found


def _item(name: str, probabilities: np.ndarray, value: str) -> Item:
    index = VALUES[name.removesuffix(" before").removesuffix(" after")].index(value)
    return Item(name, float(probabilities[index]), bool(probabilities.argmax() == index))


def locate(want: Wanted, reading: Reading) -> list[slice]:
    """The stretch of stacks of each phase, with the transitions left out, where the caption fits best."""
    count, num_events = len(reading.place), len(want.events)
    if num_events == 0:
        return [slice(0, count)]
    fit = np.zeros((len(want.phases), count))  # log-likelihood of each stack under each phase
    for p, phase in enumerate(want.phases):
        for name, value in phase.items():
            if value is not None:
                fit[p] += np.maximum(reading.log_probs[name][:, VALUES[name].index(value)], -6)
    best, best_score = None, -np.inf
    places = range(SHORTEST, max(SHORTEST + 1, count - SHORTEST))
    for cuts in combinations(places, num_events):
        stretches = _stretches(cuts, count)
        if any(s.stop - s.start < SHORTEST for s in stretches):
            continue
        score = sum(fit[p, s].mean() for p, s in enumerate(stretches))
        if score > best_score:
            best, best_score = stretches, score
    if best is None:  # more events than the clip has room for: equal parts, without leaving transitions out
        edges = np.linspace(0, count, num_events + 2).astype(int)
        best = [slice(a, max(a + 1, b)) for a, b in zip(edges[:-1], edges[1:])]
    return best


def _stretches(cuts: Sequence[int], count: int) -> list[slice]:
    starts = [0, *(min(cut + TRANSITION, count) for cut in cuts)]
    return [slice(a, b) for a, b in zip(starts, [*cuts, count])]


def overall(found: Sequence[Item]) -> float:
    """Mean probability of what is asked for: the counterpart of VBench's overall consistency."""
    return float(np.mean([item.probability for item in found])) if found else float("nan")


def all_right(found: Sequence[Item]) -> float:
    return float(all(item.right for item in found)) if found else float("nan")


def still_score(want: Wanted, reading: Reading) -> float:
    """The counterpart of the CLIP score: single stacks at eight places, without motion and camera."""
    scores = []
    for index in mid_frames(len(reading.place), 8):
        one = slice(int(index), int(index) + 1)
        for name, value in want.constant.items():
            scores.append(reading.probabilities(name, one)[VALUES[name].index(value)])
        for name in ("light", "weather", "colour"):
            values = {phase[name] for phase in want.phases}
            if None not in values:
                p = reading.probabilities(name, one)
                scores.append(sum(p[VALUES[name].index(value)] for value in values))
    return float(np.mean(scores)) if scores else float("nan")
