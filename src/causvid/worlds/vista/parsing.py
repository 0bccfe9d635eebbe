"""Prompts back into attributes: what a prompt asks for, and which of its words Vista does not know."""

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from causvid.worlds.vista import phrases
from causvid.worlds.vista.captions import all_phrases, vocabulary
from causvid.worlds.vista.scene import EVENT_KINDS, LANES, LEGAL_MOTIONS, TRAVELS, Scene

_TOKEN = re.compile(r"[^\W_]+(?:['-][^\W_]+)*|[,;:.!?]")
SUITED = {("water", "floats"): "bobs", ("water", "drives"): "sails", ("air", "drives"): "flies"}
_MARKS = frozenset(tuple(mark.split()) for mark in phrases.SECOND_MARKS)
_THEN = frozenset(tuple(words.split()) for words in phrases.CONNECTIVES)


@dataclass
class Parsed:
    """What a prompt requires. Order matters: the first thing named is the hero, the other one comes second.

    attributes: any of biome, light, weather, hero, colour, motion, camera, second hero, second colour, second motion.
    events: (kind, target) in the order told; clauses: the number of the one that tells each. others: heroes besides the
    two, and those that come later. phrases: what all of it was read from. later: the number of the first word of what
    comes later. unknown: (word, similar known words).
    """

    attributes: dict[str, str] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)
    clauses: list[int] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    phrases: list[str] = field(default_factory=list)
    later: int | None = None
    unknown: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    def disagreements(self, scene: Scene) -> list[str]:
        """The attributes that `scene` does not show as required."""
        shown = dict(vars(scene))
        if scene.second is not None:
            shown |= {f"second {name}": value for name, value in scene.second._asdict().items()}
        wrong = [name for name, value in self.attributes.items() if shown.get(name) != value]
        if self.events and self.events != [tuple(event[1:]) for event in scene.events]:
            wrong.append("events")
        return wrong


def parse_caption(text: str) -> Parsed:
    """Attributes, events and unknown words of any prompt."""
    parsed = parse_known(text)
    parsed.unknown = _unknown(tokens(text))
    return parsed


def parse_known(text: str) -> Parsed:
    """The same without a look at what is unknown, which takes long where much is."""
    parsed = Parsed()
    happening, second, colour, slot, clause = False, False, None, "", 0
    for at, match in placed(tokens(text)):
        before, slot, value = slot, match.slot, match.value
        parsed.phrases.append(match.phrase)
        if slot == "pause":
            happening, second, colour = before == "then", False, None
        elif slot == "then":
            happening = True
            clause += 1
            parsed.later = at if parsed.later is None else parsed.later
        elif slot == "mark":
            second = True
        elif happening and slot == "hero":
            if value != parsed.attributes.get("hero"):
                parsed.others.append(value)
        elif happening:
            parsed.events.append((slot, value))
            parsed.clauses.append(clause)
        elif slot == "colour":
            colour = value
        elif slot == "hero":
            second = second or "hero" in parsed.attributes
            name = "second " if second else ""
            if f"{name}hero" in parsed.attributes:
                parsed.others.append(value)
            else:
                parsed.attributes[f"{name}hero"] = value
                if colour is not None:
                    parsed.attributes[f"{name}colour"] = colour
            colour = None
        elif slot == "motion" and second and "second hero" in parsed.attributes:
            parsed.attributes.setdefault("second motion", value)
        else:
            parsed.attributes.setdefault(slot, value)
            second = second and slot != "biome"
    if "hero" not in parsed.attributes:  # "a street with a bus", "a blue and red bus": there is no other one
        parsed.attributes = {name.removeprefix("second "): value for name, value in parsed.attributes.items()}
    _suit_motions(parsed)
    return parsed


def phases(attributes: Mapping[str, str], events: Sequence[tuple[str, str]]) -> list[dict[str, str | None]]:
    """What can change under way, as it is before, between and after the events that a prompt tells; None is open."""
    now: dict[str, str | None] = {kind: attributes.get(kind) for kind in EVENT_KINDS}
    out = [now]
    for kind, target in events:
        now = now | {kind: target}
        if kind == "motion":
            now["camera"] = _camera_after(out[-1], target)
        out.append(now)
    return out


def _camera_after(before: dict[str, str | None], motion: str) -> str | None:
    """Setting off takes the camera along, stopping stops it; what a caption leaves open stays open."""
    if motion in TRAVELS:
        return "follow"
    if before["motion"] in TRAVELS:
        return "static"
    return None if before["camera"] == "follow" else before["camera"]


def names_a_hero(text: str) -> bool:
    """Whether any prompt, however long, names something that can be shown; quicker than all that it says."""
    return any(match.slot == "hero" for _, match in placed(tokens(text)))


def _suit_motions(parsed: Parsed) -> None:
    """A duck that floats bobs, and a plane that moves along flies."""
    hero = parsed.attributes.get("hero")
    if hero is None:
        return

    def suited(motion: str) -> str:
        other = SUITED.get((LANES[hero], motion), motion)
        return other if motion not in LEGAL_MOTIONS[hero] and other in LEGAL_MOTIONS[hero] else motion

    if "motion" in parsed.attributes:
        parsed.attributes["motion"] = suited(parsed.attributes["motion"])
    parsed.events = [(kind, suited(value) if kind == "motion" else value) for kind, value in parsed.events]


def tokens(text: str) -> list[str]:
    """Lower-case words and commas; every mark of punctuation is a comma."""
    return ["," if not token[0].isalnum() else token for token in _TOKEN.findall(text.lower())]


def says_more(text: str, parsed: Parsed) -> bool:
    """Whether a prompt has words that captions have, in no phrase that is known: what they say is lost in retelling."""
    left = Counter(tokens(text)) - Counter(" ".join(parsed.phrases).split())
    return not {*vocabulary()}.isdisjoint(left.keys() - _glue())


def later_is_unknown(text: str, parsed: Parsed) -> bool:
    """Whether what comes later is told with words that captions do not have: "then the rain subsides"."""
    return parsed.later is not None and not {*tokens(text)[parsed.later :]} <= {",", *vocabulary()}


@cache
def _glue() -> frozenset[str]:
    lines = [*phrases.MANNERS, *phrases.COLOUR_EVENTS, *phrases.MOTION_EVENTS, *phrases.OPENINGS, *phrases.SECOND_WORDS]
    return frozenset(" ".join([*lines, *phrases.CAPTION_GLUE, "the in at"]).split())


@dataclass(frozen=True)
class _Match:
    slot: str
    value: str
    phrase: str


@cache
def _dictionary() -> dict[tuple[str, ...], _Match]:
    table = {tuple(phrase.split()): _Match(slot, value, phrase) for phrase, slot, value in all_phrases()}
    table |= {words: _Match("mark", "", " ".join(words)) for words in _MARKS}
    table |= {words: _Match("then", "", " ".join(words)) for words in _THEN}
    return table | {(",",): _Match("pause", "", ",")}


def placed(words: list[str]) -> Iterator[tuple[int, _Match]]:
    """The longest known phrase at each place, from left to right, and where it begins."""
    table = _dictionary()
    longest = max(map(len, table))
    at = 0
    while at < len(words):
        for length in range(min(longest, len(words) - at), 0, -1):
            match = table.get(tuple(words[at : at + length]))
            if match is not None:
                yield at, match
                break
        else:
            length = 1
        at += length


def _unknown(words: list[str]) -> list[tuple[str, tuple[str, ...]]]:
    known = vocabulary()
    familiar = {",", *known}
    strangers = [word for word in dict.fromkeys(words) if word not in familiar]
    return [(word, _similar(word, known)) for word in strangers]


def _similar(word: str, known: list[str]) -> tuple[str, ...]:
    """What might have been meant: a synonym, or words spelt much the same."""
    if word in phrases.SYNONYMS:
        return (phrases.SYNONYMS[word],)
    return tuple(difflib.get_close_matches(word, known, n=3, cutoff=0.76))
