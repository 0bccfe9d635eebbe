"""A prompt that tells what comes later, as one prompt after the other: "a red bus at noon, then night falls" is a red
bus at noon, and after a while a red bus at night.

A network that makes a clip as a whole can place what comes later by itself. One that makes it as it goes has no end to
count back from, and is best told when the time comes.
"""

from collections.abc import Set as AbstractSet

from causvid.worlds.vista.captions import Writer
from causvid.worlds.vista.parsing import later_is_unknown, parse_known, phases, says_more
from causvid.worlds.vista.sampling import complete
from causvid.worlds.vista.scene import EVENT_KINDS, Scene


def story(text: str, max_parts: int = 24) -> tuple[str, ...]:
    """The prompts to tell one after the other, in words of captions. None where nothing comes later, or more is told
    than can be retold: what happens to somebody else, another place, words in no known phrase, and, of what comes
    later, words that are not known."""
    parsed = parse_known(text)
    if not parsed.events or "hero" not in parsed.attributes or parsed.others or says_more(text, parsed):
        return ()
    if later_is_unknown(text, parsed) or any(kind not in EVENT_KINDS for kind, _ in parsed.events):
        return ()
    between = phases(parsed.attributes, parsed.events)
    last_of = {clause: number for number, clause in enumerate(parsed.clauses, start=1)}
    parts = []
    for number in [0, *last_of.values()][:max_parts]:
        now = parsed.attributes | between[number]
        named = {name: value for name, value in now.items() if value is not None}
        parts.append(_Retelling(complete(named, (), seed=0), named.keys(), {*parsed.phrases}).write()[0])
    different = [part for part, before in zip(parts, ["", *parts]) if part != before]
    return tuple(different) if len(different) > 1 else ()


class _Retelling(Writer):
    """What is said of a scene, in the words that a prompt used for it where it did."""

    def __init__(self, scene: Scene, named: AbstractSet[str], used: set[str]) -> None:
        super().__init__(scene, seed=0, split="train", drop=0.0)
        self.named, self.used = named, used

    def _choose(self, words: list[str], slot: str) -> str:
        forms = ({word.split(" {}")[0], *word.split("|")} for word in words)
        return next((word for word, said in zip(words, forms) if self.used & said), words[0])

    def _says(self, slot: str) -> bool:
        return (f"{slot} hero" if slot == "second" else slot) in self.named

    def _says_of_second(self, slot: str) -> bool:
        return slot in self.named

    def _order(self) -> int:
        return 0

    def _manner(self, slot: str) -> str:
        return ""
