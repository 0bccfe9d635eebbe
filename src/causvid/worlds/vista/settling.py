"""What a prompt leaves open, settled: "a car at noon" is told as "a blue car at noon".

A network that makes a clip as a whole may leave a colour open until it shows. In a stream the words are all that tells
the last chunk and the first that the car is the same one; where they name no colour, it is another one after a while.
"""

from collections.abc import Sequence

from causvid.worlds.vista.parsing import parse_known, phases, placed, tokens
from causvid.worlds.vista.scene import COLOURS
from causvid.worlds.vista.streams import Stream
from causvid.worlds.vista.wording import coloured


def settle(parts: Sequence[str], seed: int, before: str = "") -> tuple[str, ...]:
    """Prompts that are told one after the other, after one told `before`, with the hero's colour named: that of the
    same hero before, where it was told, and otherwise one that the seed chooses."""
    out: list[str] = []
    for part in parts:
        out.append(_with_colour(part, seed, out[-1] if out else before))
    return tuple(out)


def _with_colour(text: str, seed: int, before: str) -> str:
    attributes = parse_known(text).attributes
    hero = attributes.get("hero")
    if hero is None or "colour" in attributes:
        return text
    earlier = parse_known(before)
    known = phases(earlier.attributes, earlier.events)[-1]["colour"] if earlier.attributes.get("hero") == hero else None
    colour = known or Stream(seed, f"colour of a {hero}").pick(COLOURS)
    words = tokens(text)
    at = next(at for at, match in placed(words) if match.slot == "hero" and match.value == hero)
    return " ".join(coloured(words, at, colour)).replace(" ,", ",")
