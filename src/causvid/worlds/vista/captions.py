"""Scenes in words: captions for training, prompts for timelines, and the closed vocabulary of both."""

from functools import cache

from causvid.worlds.vista import phrases
from causvid.worlds.vista.scene import LANES, LEGAL_MOTIONS, Event, Scene, Second
from causvid.worlds.vista.streams import Stream

DROP = 0.3  # how often a slot is left out, so that the model must choose


def caption(scene: Scene, seed: int, split: str = "train", drop: float = DROP) -> str:
    """One of many sentences about a scene. The paraphrase split uses the phrases that training never shows."""
    return describe(scene, seed, split, drop)[0]


def caption_at(scene: Scene, second: float, seed: int = 0, split: str = "train", drop: float = 0.0) -> str:
    """The prompt in force at a time of a timeline: what is, without what was or will be."""
    return caption(scene.after_events(second), seed, split, drop)


def timeline_prompts(scene: Scene, seed: int = 0, split: str = "train") -> list[tuple[float, str]]:
    """(start second, prompt) for every interval; prompts differ only where the scene does."""
    starts = [0.0, *dict.fromkeys(event.time for event in scene.events)]
    return [(start, caption_at(scene, start + 1e-6, seed, split)) for start in starts]


def describe(scene: Scene, seed: int, split: str = "train", drop: float = DROP) -> tuple[str, set[str]]:
    """A caption, and the names of the attributes that it mentions."""
    return Writer(scene, seed, split, drop).write()


class Writer:
    """Each slot draws from its own stream: changing one attribute changes one phrase."""

    def __init__(self, scene: Scene, seed: int, split: str, drop: float):
        self.scene, self.seed, self.drop = scene, seed, drop
        self.reserved = split == "paraphrase"
        self.said: set[str] = {"hero"}

    def _stream(self, slot: str) -> Stream:
        return Stream(self.seed, f"caption {slot}")

    def _choose(self, words: list[str], slot: str) -> str:
        if self.reserved and len(words) > 1:
            return words[-1]
        return self._stream(slot).pick(words[:-1] if len(words) > 1 else words)

    def _says(self, slot: str) -> bool:
        """Whether this slot is not left out."""
        said = not self._stream(f"{slot} dropped").chance(self.drop)
        if said:
            self.said.add(slot)
        return said

    def _manner(self, slot: str) -> str:
        stream = self._stream(f"{slot} manner")
        return stream.pick(phrases.MANNERS) if stream.chance(0.15) else ""

    def _order(self) -> int:
        return self._stream("order").below(6)

    def _noun(self, hero: str, colour: str | None, slot: str) -> str:
        words = [self._choose(phrases.HERO_WORDS[hero], f"{slot} hero")]
        if colour is not None:
            words.insert(0, self._choose(phrases.COLOUR_WORDS[colour], f"{slot} colour"))
        return with_article(" ".join([*filter(None, [self._manner(slot)]), *words]))

    def write(self) -> tuple[str, set[str]]:
        scene, lane = self.scene, LANES[self.scene.hero]
        noun = self._noun(scene.hero, scene.colour if self._says("colour") else None, "first")
        verb = None
        if self._says("motion"):
            verb = self._choose(phrases.motion_words(scene.motion, scene.hero, lane), "motion")
        kind = phrases.place_kind(lane, scene.motion if verb else None)
        place = self._choose(phrases.PLACE_WORDS[scene.biome][kind], "place") if self._says("biome") else ""
        light = self._choose(phrases.LIGHT_WORDS[scene.light], "light") if self._says("light") else ""
        weather = self._choose(phrases.WEATHER_WORDS[scene.weather], "weather") if self._says("weather") else ""
        parts = [self._sentence(noun, verb, place, light, weather)]
        if self._says("camera"):
            parts.append(self._choose(phrases.CAMERA_WORDS[scene.camera], "camera"))
        if scene.second is not None and self._says("second"):
            parts.append(self._choose(phrases.SECOND_WORDS, "second").format(self._second(scene.second)))
        parts += [self._event(number, event) for number, event in enumerate(scene.events)]
        return ", ".join(parts), self.said

    def _sentence(self, noun: str, verb: str | None, place: str, light: str, weather: str) -> str:
        order = self._order()
        opening = self._choose(phrases.OPENINGS, "opening")
        first = {1: light, 4: place, 5: weather}.get(order, "")
        rest = [part for part in (place, light, weather) if part and part != first]
        if verb is not None and rest and rest[0].startswith("along "):
            verb = verb.replace(" along", "")  # "drives along a city street", not "drives along along"
        if verb is None or order == 2:
            subject = [opening, noun, *([phrases.participle(verb)] if verb else [])]
            return " ".join([*subject, *([first] if first else []), *rest])
        if order == 3:
            return " ".join([opening, noun, "that", phrases.finite(verb), *rest])
        head = f"{first}, " if first else ""
        return head + " ".join([noun, phrases.finite(verb), *rest])

    def _says_of_second(self, slot: str) -> bool:
        """Its colour always, what it does sometimes."""
        said = slot == "second colour" or self._stream(slot).chance(0.25)
        if said and slot == "second motion":
            self.said.add(slot)
        return said

    def _second(self, second: Second) -> str:
        noun = self._noun(second.hero, second.colour if self._says_of_second("second colour") else None, "second")
        if self._says_of_second("second motion"):
            words = phrases.motion_words(second.motion, second.hero, LANES[second.hero])
            noun += " " + phrases.participle(self._choose(words, "second verb"))
        return noun

    def _event(self, number: int, event: Event) -> str:
        return f"{self._choose(phrases.CONNECTIVES, f'connective {number}')} {self._clause(event, f'event {number}')}"

    def _clause(self, event: Event, slot: str) -> str:
        if event.kind == "light":
            return self._choose(phrases.LIGHT_EVENTS[event.target], slot)
        if event.kind == "weather":
            return self._choose(phrases.WEATHER_EVENTS[event.target], slot)
        if event.kind == "colour":
            colour = self._choose(phrases.COLOUR_WORDS[event.target], f"{slot} colour")
            return self._choose(phrases.COLOUR_EVENTS, slot).format(colour)
        if event.kind == "motion":
            verbs = phrases.motion_words(event.target, self.scene.hero, LANES[self.scene.hero])
            doing = [verb for verb in map(phrases.participle, verbs) if verb.split()[0].endswith("ing")]
            return self._choose(phrases.MOTION_EVENTS, slot).format(self._choose(doing, f"{slot} verb"))
        clauses = [w for w in phrases.CAMERA_WORDS[event.target] if w.startswith("the camera")]
        return self._choose(clauses, slot)


def with_article(noun: str) -> str:
    """a or an: by sound, so "a ufo" but "an orange ufo"."""
    vowel = noun[0] in "aeiou" and not noun.startswith("ufo")
    return f"{'an' if vowel else 'a'} {noun}"


@cache
def all_phrases() -> tuple[tuple[str, str, str], ...]:
    """(phrase, slot, value) for everything that names an attribute; the longest are to be looked for first."""
    found: set[tuple[str, str, str]] = set()

    def add(words: list[str], slot: str, value: str) -> None:
        found.update((word, slot, value) for word in words)

    for colour, words in phrases.COLOUR_WORDS.items():
        add(words, "colour", colour)
    for hero, words in phrases.HERO_WORDS.items():
        add(words, "hero", hero)
        for motion in LEGAL_MOTIONS[hero]:
            for verb in phrases.motion_words(motion, hero, LANES[hero]):
                add([phrases.finite(verb), phrases.participle(verb)], "motion", motion)
    for biome, kinds in phrases.PLACE_WORDS.items():
        for words in kinds.values():
            add(words, "biome", biome)
    tables = {
        "light": (phrases.LIGHT_WORDS, phrases.LIGHT_EVENTS),
        "weather": (phrases.WEATHER_WORDS, phrases.WEATHER_EVENTS),
        "camera": (phrases.CAMERA_WORDS,),
    }
    for slot, several in tables.items():
        for table in several:
            for value, words in table.items():
                add(words, slot, value)
    for slot, table in phrases.KEYWORDS.items():
        for value, words in table.items():
            add(words, slot, value)
    return tuple(sorted(found))


@cache
def _vocabulary() -> tuple[str, ...]:
    lines = [phrase for phrase, _, _ in all_phrases()]
    lines += phrases.MANNERS + phrases.COLOUR_EVENTS + phrases.MOTION_EVENTS + phrases.OPENINGS
    lines += phrases.CONNECTIVES + phrases.SECOND_WORDS + phrases.CAPTION_GLUE
    return tuple(sorted({word for line in lines for word in line.replace("{}", " ").split()}))


def vocabulary() -> list[str]:
    """Every word that captions say or that is read as what they say (phrases.KEYWORDS), sorted; no punctuation."""
    return list(_vocabulary())
