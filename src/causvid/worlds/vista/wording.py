"""Prompts as people write them, in words that captions use: other words for the same, what is denied, colours that are
said behind what they are of."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from causvid.worlds.vista import phrases
from causvid.worlds.vista.parsing import SUITED, parse_caption, placed, tokens
from causvid.worlds.vista.sampling import complete
from causvid.worlds.vista.scene import COLOURS, HEROES, LANES, LEGAL_MOTIONS, Event, Scene

_IS_FALLING = re.compile(r"(?:\s+is|'s)(?=\s+(?:snowing|raining)\b)", re.IGNORECASE)
_PHRASES = [(re.compile(pattern, re.IGNORECASE), known) for pattern, known in phrases.PHRASES.items()]

_DENIALS = {"not", "no", "without", "never", "neither", "isn't", "aren't", "wasn't", "doesn't", "don't", "didn't",
            "won't", "can't", "cannot"}  # fmt: skip
_BETWEEN = {"a", "an", "the", "any", "is", "are", "be", "being", "at", "in", "on"}  # a denial and what it denies
_HELPERS = {"is", "are", "was", "does", "do", "did"}  # "does not drive": gone with the denial
_ALSO = {"or", "nor"}
_OF_COLOUR = {"that", "which", "is", "are", "was", "the", "in", "of", "colour", "color", "coloured", "colored",
              "painted"}  # fmt: skip


class _Named(NamedTuple):
    """Words start to end, which say `value` of `slot`."""

    start: int
    end: int
    slot: str
    value: str


class _Denied(NamedTuple):
    """Words start to end: a denial and what it denies; nothing known, or one thing, or a hero and its colour."""

    start: int
    end: int
    what: tuple[_Named, ...]


def rephrase(text: str) -> tuple[str, dict[str, str]]:
    """A prompt in words that captions use, for a model that was trained on captions: "a ship" becomes "a boat", and "a
    ship that is not red" becomes "a blue boat": captions deny nothing.

    Beside it what was read as what; a caption comes back as it is."""
    read_as: dict[str, str] = {}
    said = text.replace("’", "'")
    for pattern, known in _PHRASES:
        read_as |= {found.group().lower(): known for found in pattern.finditer(said)}
        said = pattern.sub(known, said)
    read_as |= {word: phrases.SYNONYMS[word] for word in tokens(said) if word in phrases.SYNONYMS}
    said = _IS_FALLING.sub("", said)  # "it is snowing" becomes "it snows"
    affirmed, denied = _affirmed([known for word in tokens(said) for known in phrases.SYNONYMS.get(word, word).split()])
    better, read_as = _colours_first(affirmed), read_as | denied
    if not read_as and better == affirmed:
        return text, {}
    return " ".join(better).replace(" ,", ","), read_as


def scene_from_prompt(text: str, seed: int = 0, switch_every: float = 3.0) -> Scene:
    """A scene that shows what a prompt asks for; what it leaves open follows from the seed."""
    parsed = parse_caption(rephrase(text)[0])
    return complete(
        parsed.attributes, [Event(switch_every * (k + 1), *event) for k, event in enumerate(parsed.events)], seed
    )


def coloured(words: Sequence[str], at: int, colour: str) -> list[str]:
    """`colour` said of what is named at `at`, behind the article that it needs."""
    before = list(words[:at])
    if before and before[-1] in ("a", "an"):
        before[-1] = "an" if colour[0] in "aeiou" else "a"
    return [*before, *colour.split(), *words[at:]]


# ---- what is denied ------------------------------------------------------------------------------------------------


def _affirmed(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """What is denied, as what is there instead: another colour, the other time of day, standing still."""
    denials = _denials(words)
    absent = {(named.slot, named.value) for denial in denials for named in denial.what}
    hero = next(
        (named.value for named in _named(words) if named.slot == "hero" and ("hero", named.value) not in absent), None
    )
    out, done, read_as = list[str](), 0, dict[str, str]()
    answered: set[str] = set()  # slots of which it has been said what is there instead; figures have their own
    for denial in denials:
        if any(each.slot == "hero" for each in _named(words[done : denial.start])):
            answered -= {"colour", "motion"}
        slots = {each.slot for each in denial.what}
        better = _instead(denial.what[-1], absent, hero) if denial.what and not slots & answered else ""
        answered |= slots
        out += words[done : denial.start]
        done = denial.end
        if slots == {"colour"} and better:
            out = coloured(out, len(out), better)
        else:
            out += better.split()
        read_as[" ".join(words[denial.start : denial.end])] = better
    return out + words[done:], read_as


def _named(words: list[str]) -> list[_Named]:
    found = ((at, match) for at, match in placed(words) if match.slot not in ("pause", "mark", "then"))
    return [_Named(at, at + len(match.phrase.split()), match.slot, match.value) for at, match in found]


def _denials(words: list[str]) -> list[_Denied]:
    """In order. A denial that is a part of what captions say ("without a storm") is none."""
    named = {each.start: each for each in _named(words)}
    said = {place for each in named.values() for place in range(each.start, each.end)}
    out: list[_Denied] = []
    at = 0
    while at < len(words):
        too = bool(out) and at == out[-1].end and words[at] in _ALSO
        if (words[at] in _DENIALS or too) and at not in said:
            found = _denied(words, at, named)
            if found.what or not too:
                out.append(found)
                at = found.end
                continue
        at += 1
    return out


def _denied(words: list[str], start: int, named: dict[int, _Named]) -> _Denied:
    at = start + 1
    while at < len(words) and at not in named and words[at] in _BETWEEN:
        at += 1
    first = named.get(at)
    if first is None:  # "without wheels": what is not known is denied with it
        return _Denied(start, min(start + 2, len(words)), ())
    end, what = first.end, [first]
    behind = named.get(end)
    if behind is not None and (first.slot, behind.slot) == ("colour", "hero"):
        is_whole = _but(words, behind.end) or words[start] in ("no", "without")  # not its colour, the figure is denied
        end, what = (behind.end, [first, behind]) if is_whole else (end, what)
    if what[-1].slot == "hero":
        end += words[end : end + 1] == ["nearby"]
        end += _but(words, end)
        start -= bool(start) and words[start - 1] == "with"
    if first.slot == "motion":
        start -= bool(start) and words[start - 1] in _HELPERS
    return _Denied(start, end, tuple(what))


def _but(words: list[str], at: int) -> int:
    """How many words there say that something else comes instead."""
    return next((len(but) for but in (["but"], [",", "but"]) if words[at : at + len(but)] == but), 0)


def _instead(denied: _Named, absent: set[tuple[str, str]], hero: str | None) -> str:
    """In words of captions; nothing where nothing else is possible, or another hero is named."""
    slot, value = denied.slot, denied.value
    if slot == "colour":
        others = (COLOURS[(COLOURS.index(value) + 4 + more) % len(COLOURS)] for more in range(len(COLOURS)))
        return next((other for other in others if (slot, other) not in absent), "")
    if slot == "light":
        return "at night" if value == "day" else "at noon"
    if slot == "weather":
        return "in the rain" if value == "clear" else "in dry weather"
    if slot == "camera":
        return "sweeping camera" if value == "static" else "static camera"
    lane = LANES[hero] if hero is not None else "ground"
    if slot == "biome" and lane != "water":
        other = "meadow" if ("biome", "meadow") not in absent else "desert"
        return phrases.PLACE_WORDS[other][phrases.place_kind(lane, None)][
            1 if other == "meadow" and lane == "air" else 0
        ]
    if slot == "hero" and hero is None:
        return next(
            (f"a {other}" for other in HEROES if LANES[other] == LANES[value] and (slot, other) not in absent), ""
        )
    if slot == "motion" and hero is not None:
        also = SUITED.get((lane, value))
        ways = sorted(LEGAL_MOTIONS[hero], key=lambda way: way != "stays")
        way = next((way for way in ways if way not in (value, also) and (slot, way) not in absent), None)
        return phrases.finite(phrases.motion_words(way, hero, lane)[-1 if way == "stays" else 0]) if way else ""
    return ""


# ---- colours -------------------------------------------------------------------------------------------------------


def _colours_first(words: list[str]) -> list[str]:
    """ "a car that is red" as "a red car": captions say colours before what they are of."""
    found = _named(words)
    heroes = {each.start for each in found if each.slot == "hero"}
    colours = {each.end for each in found if each.slot == "colour"}
    for hero, colour in reversed([*zip(found, found[1:])]):
        if (hero.slot, colour.slot) != ("hero", "colour") or hero.start in colours:
            continue
        between, behind = words[hero.end : colour.start], words[colour.end : colour.end + 1]
        aside = between == [","] and behind in ([], [","])  # "a car, red, in the city"
        is_its_own = between and {*between} <= _OF_COLOUR and colour.end not in heroes
        if aside or is_its_own:
            name = " ".join(words[colour.start : colour.end])
            words = coloured([*words[: hero.end], *words[colour.end :]], hero.start, name)
    return words
