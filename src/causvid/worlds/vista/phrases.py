"""The words of Vista's captions.

In every list the last phrase is kept for the paraphrase split and is never trained on; it is made of words that other
phrases teach. Verbs are pairs: "drives along|driving along".
"""

COLOUR_WORDS = {
    "red": ["red", "red", "crimson", "scarlet", "ruby red", "bright red"],
    "orange": ["orange", "orange", "tangerine", "pumpkin orange", "bright orange"],
    "yellow": ["yellow", "yellow", "lemon yellow", "canary yellow", "bright yellow"],
    "green": ["green", "green", "emerald", "leaf green", "bright green"],
    "blue": ["blue", "blue", "azure", "cobalt blue", "royal blue", "bright blue"],
    "purple": ["purple", "purple", "violet", "royal purple", "bright purple"],
    "pink": ["pink", "pink", "rosy", "candy pink", "bright pink"],
    "white": ["white", "white", "snow-white", "ivory", "bright white"],
}

HERO_WORDS = {
    "car": ["car", "car", "automobile", "hatchback", "family car", "family automobile"],
    "bus": ["bus", "bus", "city bus", "coach", "school bus", "city coach"],
    "train": ["train", "train", "steam train", "locomotive", "steam engine", "steam locomotive"],
    "ball": ["ball", "ball", "striped ball", "beach ball", "rubber ball", "striped beach ball"],
    "rabbit": ["rabbit", "rabbit", "bunny", "hare", "bunny rabbit", "bunny hare"],
    "bird": ["bird", "bird", "songbird", "sparrow", "robin", "robin songbird"],
    "balloon": ["balloon", "hot-air balloon", "hot air balloon", "airship", "striped balloon"],
    "plane": ["plane", "airplane", "aeroplane", "propeller plane", "aircraft", "propeller aircraft"],
    "ufo": ["ufo", "flying saucer", "spaceship", "alien spaceship", "alien saucer"],
    "boat": ["boat", "sailboat", "sailing boat", "yacht", "sailing yacht"],
    "duck": ["duck", "duck", "duckling", "mallard", "rubber duck", "mallard duck"],
}
MANNERS = ["little", "small", "cheerful", "pretty", "lovely", "tiny", "cute"]  # say nothing that can be seen

MOTION_WORDS = {
    "drives": ["drives|driving", "drives along|driving along", "travels along|travelling along",
               "rolls along|rolling along",
               "is on its way|on its way", "moves along|moving along", "drives on its way|driving on its way"],
    "hops": ["hops|hopping", "jumps up and down|jumping up and down", "leaps into the air|leaping into the air",
             "hops up and down|hopping up and down"],
    "bounces": ["bounces|bouncing", "bounces up and down|bouncing up and down",
                "springs off the ground|springing off the ground",
                "bounces off the ground|bouncing off the ground"],
    "rolls": ["rolls back and forth|rolling back and forth", "rolls to and fro|rolling to and fro",
              "rolls left and right|rolling left and right", "rolls from side to side|rolling from side to side"],
    "paces": ["walks back and forth|walking back and forth", "paces to and fro|pacing to and fro",
              "strolls around|strolling around",
              "wanders from side to side|wandering from side to side", "walks to and fro|walking to and fro"],
    "flies": ["flies|flying", "flies along|flying along", "glides along|gliding along", "soars along|soaring along",
              "flies on its way|flying on its way"],
    "circles": ["flies in circles|flying in circles", "circles|circling", "goes round and round|going round and round",
                "circles in the air|circling in the air", "flies round and round|flying round and round"],
    "loops": ["does loops|doing loops", "flies loop-the-loops|flying loop-the-loops",
              "performs stunts|performing stunts",
              "loops the loop|looping the loop", "performs loops|performing loops"],
    "swoops": ["swoops through the air|swooping through the air", "swoops around|swooping around",
               "dives and climbs|diving and climbing", "dips and rises|dipping and rising",
               "swoops and climbs|swooping and climbing"],
    "floats": ["floats|floating", "hovers|hovering", "drifts gently|drifting gently",
               "sways in the breeze|swaying in the breeze",
               "floats gently|floating gently"],
    "bobs": ["bobs up and down|bobbing up and down", "bobs on the waves|bobbing on the waves",
             "rocks gently|rocking gently",
             "bobs gently|bobbing gently"],
    "sails": ["sails back and forth|sailing back and forth", "cruises to and fro|cruising to and fro",
              "crosses the water|crossing the water", "swims around|swimming around",
              "sails to and fro|sailing to and fro"],
}  # fmt: skip
STAY_WORDS = {
    "ground": ["stands still|standing still", "waits|waiting", "stays where it is|staying where it is",
               "rests quietly|resting quietly",
               "stands quietly|standing quietly"],
    "air": ["hangs still in the air|hanging still in the air", "stays still in the air|staying still in the air",
            "keeps still up high|keeping still up high", "hangs quietly in the air|hanging quietly in the air"],
    "water": ["lies still on the water|lying still on the water", "rests on calm water|resting on calm water",
              "stays put on the water|staying put on the water",
              "lies quietly on the water|lying quietly on the water"],
}  # fmt: skip
PARKED = ["is parked|parked"]  # vehicles, besides STAY_WORDS

# "past" for travellers on the ground, "in" for everything else on ground or water, "over" for the air.
PLACE_WORDS = {
    "meadow": {
        "past": ["past green hills", "through a meadow", "through green countryside", "along a country path",
                 "past cottages and trees",
                 "through green hills"],
        "in": ["in a meadow", "in the green countryside", "among green hills", "near cottages and trees",
               "on a country path",
               "in the green hills"],
        "over": ["over green hills", "above a meadow", "over the countryside", "above the cottages", "over a meadow"],
    },
    "forest": {
        "past": ["past autumn trees", "through the autumn woods", "through an autumn forest",
                 "along a woodland trail", "past golden leaves",
                 "through autumn trees"],
        "in": ["in an autumn forest", "in the autumn woods", "among golden leaves", "on a woodland trail",
               "near orange treetops",
               "among autumn trees"],
        "over": ["over an autumn forest", "above the autumn woods", "over orange treetops", "above golden leaves",
                 "over autumn trees"],
    },
    "desert": {
        "past": ["past sand dunes", "through the desert", "across the dry sand", "past mesas and cacti",
                 "past desert dunes"],
        "in": ["in the desert", "among sand dunes", "on the dry sand", "among cacti", "near a cactus",
               "in the desert sand"],
        "over": ["over the desert", "above sand dunes", "over mesas and cacti", "above the dry sand",
                 "over desert dunes"],
    },
    "snow": {
        "past": ["past snowy peaks", "through a winter landscape", "through the snowy mountains",
                 "past frosty pines", "past snowy pines"],
        "in": ["in a winter landscape", "in the snowy mountains", "among frosty pines", "near icy peaks",
               "on a white winter field",
               "among snowy pines"],
        "over": ["over snowy peaks", "above the snowy mountains", "over a winter landscape", "above icy peaks",
                 "over frosty pines",
                 "over snowy mountains"],
    },
    "sea": {
        "past": ["past small islands", "along the coast", "across the sea", "past palm islands"],
        "in": ["on the sea", "out on the ocean", "near small islands", "off the coast", "by palm islands",
               "out on the sea"],
        "over": ["over the sea", "above the ocean", "over small islands", "above the coast", "above the sea"],
    },
    "city": {
        "past": ["past tall buildings", "through the city", "through downtown", "along a city street",
                 "past skyscrapers",
                 "past city buildings"],
        "in": ["in the city", "among tall buildings", "in downtown", "on a city street", "near skyscrapers",
               "among city buildings"],
        "over": ["over the city", "above tall buildings", "over downtown", "above the skyline",
                 "over the rooftops", "over city buildings"],
    },
}  # fmt: skip

LIGHT_WORDS = {
    "day": ["during the day", "under a blue sky", "at noon", "in bright daylight", "in the sunshine",
            "on a sunny afternoon", "in daytime",
            "at midday", "in the bright sunshine"],
    "sunset": ["at sunset", "in the golden evening light", "as the sun goes down", "in the evening", "at dusk",
               "under a red sky",
               "in evening sunlight", "at twilight", "in the light of the evening"],
    "night": ["at night", "under the stars", "in the moonlight", "at midnight", "under a dark starry sky",
              "late at night", "by moonlight",
              "after dark", "under the night sky"],
    "dawn": ["at dawn", "in the early morning", "at sunrise", "as the sun comes up", "at daybreak",
             "in pale morning light",
             "at first light", "in the morning", "in early morning light"],
}  # fmt: skip
WEATHER_WORDS = {
    "clear": ["in clear weather", "in fine weather", "in dry weather", "without a storm", "with clear air",
              "in clear air"],
    "rain": ["in the rain", "while it rains", "on a rainy day", "in a heavy shower", "in wet weather", "in a downpour",
             "as raindrops fall", "in rainy weather"],
    "snow": ["in falling snow", "while it snows", "as snowflakes fall", "in a snowstorm", "in a blizzard",
             "in snowy weather",
             "in a flurry of snowflakes", "while snow is falling"],
    "fog": ["in the fog", "in thick mist", "on a misty day", "in hazy weather", "on a foggy day",
            "surrounded by haze", "in the mist",
            "in foggy weather"],
}  # fmt: skip
CAMERA_WORDS = {
    "static": ["static camera", "fixed shot", "the camera stands still", "the camera does not move",
               "still camera", "tripod shot",
               "the camera is fixed"],
    "pan left": ["the camera pans left", "panning left", "the camera moves to the left", "panning shot to the left",
                 "the camera is panning left"],
    "pan right": ["the camera pans right", "panning right", "the camera moves to the right",
                  "panning shot to the right",
                  "the camera is panning right"],
    "sweep": ["the camera sweeps back and forth", "the camera swings from side to side", "sweeping camera",
              "the camera looks left and right", "the camera sweeps from side to side"],
    "follow": ["the camera follows it", "tracking shot", "the camera keeps up with it", "following shot",
               "the camera goes along with it",
               "the camera is following it"],
}  # fmt: skip

LIGHT_EVENTS = {
    "day": ["the sun rises high", "it becomes day", "the day begins", "full daylight arrives", "it becomes bright day"],
    "sunset": ["the sun sets", "evening comes", "the sun sinks low", "dusk arrives", "the evening begins"],
    "night": ["night falls", "it gets dark", "the stars come out", "the moon appears", "the night begins"],
    "dawn": ["the day breaks", "dawn comes", "morning comes", "the sun peeks over the horizon", "the morning begins"],
}
WEATHER_EVENTS = {
    "clear": [
        "the weather clears",
        "the sky clears up",
        "the clouds disappear",
        "the air becomes clear",
        "the weather becomes clear",
    ],
    "rain": ["it starts to rain", "rain falls", "a shower begins", "rain pours down", "it begins to rain"],
    "snow": ["it begins to snow", "snow falls", "snowflakes tumble down", "a snowstorm begins", "it starts to snow"],
    "fog": ["fog rolls in", "mist rises", "thick fog gathers", "haze spreads everywhere", "thick mist rolls in"],
}
COLOUR_EVENTS = ["it turns {}", "it changes to {}", "its colour becomes {}", "it is painted {}", "it becomes {}"]
MOTION_EVENTS = ["it starts {}", "it begins {}", "it switches to {}", "it keeps on {}", "it changes to {}"]

OPENINGS = ["a video of", "a film of", "footage of", "an animation of", "a clip of", "a scene of", "a movie of",
            "a short film of",
            "a short video of"]  # fmt: skip
CONNECTIVES = ["then", "then", "later", "after a while", "and then", "moments later", "a moment later", "suddenly",
               "next", "afterwards",
               "and later"]  # fmt: skip
SECOND_WORDS = ["with {} nearby", "near {}", "together with {}", "accompanied by {}", "beside {}", "next to {}",
                "joined by {}",
                "with {} in the background", "with {} beside it"]  # fmt: skip
SECOND_MARKS = ["with", "near", "together with", "accompanied by", "beside", "next to", "joined by", "and"]
CAPTION_GLUE = ["a", "an", "that", "which", "where"]

# What people write besides: understood, but in no caption, so a model has never been told them (see `rephrase`).
KEYWORDS = {
    "hero": {
        "car": ["passenger car", "toy car"],
        "bus": ["passenger bus", "toy bus"],
        "plane": ["passenger plane", "toy plane"],
        "ball": ["toy ball"],
        "boat": ["toy boat"],
        "rabbit": ["wild rabbit"],
        "bird": ["wild bird"],
        "duck": ["wild duck"],
    },
    "biome": {
        "meadow": [
            "meadow",
            "countryside",
            "hills",
            "grass",
            "grassland",
            "farmland",
            "cottages",
            "fields",
            "country path",
        ],
        "forest": ["forest", "woods", "woodland", "woodland trail", "golden leaves", "treetops", "autumn"],
        "desert": ["desert", "dunes", "dune", "cactus", "cacti", "mesas", "sand"],
        "snow": ["mountains", "mountain", "winter", "peaks", "pines", "alps"],
        "sea": ["sea", "ocean", "islands", "island", "coast", "waves", "seaside"],
        "city": [
            "city",
            "downtown",
            "town",
            "street",
            "skyscrapers",
            "skyscraper",
            "skyline",
            "rooftops",
            "buildings",
            "urban",
        ],
    },
    "light": {
        "day": ["day", "daytime", "daylight", "noon", "midday", "sunny", "sunshine", "afternoon"],
        "sunset": ["sunset", "dusk", "evening", "twilight", "the sun goes down"],
        "night": ["night", "nighttime", "midnight", "moonlight", "moonlit", "starry", "stars", "moon"],
        "dawn": ["dawn", "sunrise", "daybreak", "morning", "the sun comes up"],
    },
    "weather": {
        "clear": ["cloudless"],
        "rain": ["rain", "rainy", "raining", "it rains", "shower", "downpour", "raindrops", "wet"],
        "snow": [
            "in the snow",
            "snow falling",
            "it snows",
            "snowing",
            "snowflakes",
            "snowstorm",
            "blizzard",
            "snowfall",
        ],
        "fog": ["fog", "foggy", "mist", "misty", "haze", "hazy"],
    },
    "camera": {
        "static": ["tripod", "stationary"],
        "sweep": ["sweeping"],
        "follow": ["tracking"],
    },
    "motion": {
        "drives": ["drives", "driving", "drive"],
        "hops": ["hop", "jumps", "jumping", "leaps", "leaping"],
        "bounces": ["bounce"],
        "rolls": ["rolls", "rolling"],
        "paces": ["paces", "pacing", "walks", "walking", "strolls", "strolling", "wanders", "wandering"],
        "flies": ["fly", "glides", "gliding", "soars", "soaring"],
        "loops": ["loops", "looping", "loop-the-loops"],
        "swoops": ["swoops", "swooping", "dives", "diving"],
        "floats": ["drifts", "drifting"],
        "bobs": ["bobs", "bobbing"],
        "sails": ["sails", "sailing", "cruises", "cruising", "swims", "swimming"],
        "stays": ["stays", "stands", "standing", "parked", "rests", "resting"],
    },
}


# Words that no caption has, in words that captions have. The first block is part of the vocabulary, the second is not.
SYNONYMS = {
    "alps": "snowy mountains", "bounce": "bounces", "cloudless": "clear", "drive": "drives", "dune": "dunes",
    "farmland": "countryside", "fields": "countryside", "fly": "flies", "grass": "meadow", "grassland": "meadow",
    "hop": "hops", "island": "islands", "moonlit": "moonlight", "mountain": "mountains", "nighttime": "night",
    "passenger": "", "raining": "rains", "seaside": "coast", "skyscraper": "skyscrapers", "snowfall": "falling snow",
    "snowing": "snows", "stationary": "static", "town": "city", "toy": "", "urban": "city", "which": "that", "wild": "",

    "ship": "boat", "vessel": "boat", "vehicle": "car", "auto": "car", "jet": "airplane",
    "magenta": "pink", "lilac": "purple", "gold": "yellow", "navy": "blue", "lime": "green",
    "village": "cottages", "jungle": "forest", "lake": "sea", "sunlit": "sunny",
    "nightfall": "night", "cloudy": "misty", "stormy": "rainy", "drizzle": "rain", "drizzling": "rains",
    "lorry": "bus", "taxi": "car", "cab": "car", "van": "car", "jeep": "car", "tram": "train", "airliner": "airplane",
    "zeppelin": "airship", "blimp": "airship", "ferry": "boat", "canoe": "boat", "goose": "duck", "swan": "duck",
    "turquoise": "azure", "cyan": "azure", "indigo": "violet", "maroon": "crimson",
    "beige": "ivory", "cream": "ivory", "teal": "emerald", "lavender": "violet",
    "road": "street", "highway": "street", "prairie": "meadow", "valley": "countryside",
    "harbour": "coast", "harbor": "coast", "shore": "coast", "woodlands": "woods", "sundown": "sunset",
    "thunderstorm": "downpour", "snowstorms": "snowstorm", "showers": "shower", "sleet": "snow",
    "runs": "walks", "running": "walking", "strides": "walks", "races": "drives", "racing": "driving",
    "speeding": "driving", "speeds": "drives", "rides": "drives", "riding": "driving", "sleeping": "resting",
    "sits": "rests", "sitting": "resting", "stand": "stands", "stay": "stays", "wait": "waits", "float": "floats",
    "hover": "hovers", "sail": "sails", "swim": "swims", "cruise": "cruises", "walk": "walks", "stroll": "strolls",
    "jump": "jumps", "roll": "rolls", "circle": "circles", "glide": "glides", "soar": "soars", "swoop": "swoops",

    # not in this world: what comes nearest to it
    "cat": "rabbit", "kitten": "rabbit", "dog": "rabbit", "puppy": "rabbit", "fox": "rabbit", "squirrel": "rabbit",
    "mouse": "rabbit", "bear": "rabbit", "horse": "rabbit", "cow": "rabbit", "sheep": "rabbit", "lion": "rabbit",
    "tiger": "rabbit", "deer": "rabbit", "kangaroo": "rabbit", "frog": "rabbit", "animal": "rabbit",
    "eagle": "bird", "owl": "bird", "seagull": "bird", "gull": "bird", "crow": "bird", "pigeon": "bird",
    "parrot": "bird", "dragon": "bird", "butterfly": "bird", "bee": "bird", "penguin": "duck",
    "truck": "bus", "tractor": "bus", "motorcycle": "car", "motorbike": "car", "bicycle": "car", "bike": "car",
    "scooter": "car", "helicopter": "airplane", "drone": "airplane", "rocket": "spaceship", "submarine": "boat",
    "whale": "boat", "fish": "duck", "football": "ball", "basketball": "ball",
    "park": "meadow", "garden": "meadow", "farm": "countryside", "river": "sea", "pond": "sea",
    "canyon": "mesas", "volcano": "peaks", "arctic": "winter", "glacier": "peaks", "sahara": "desert",
    "tokyo": "the city", "paris": "the city", "london": "the city", "berlin": "the city", "manhattan": "the city",
}  # fmt: skip

_HEROES = {word: hero for hero, words in HERO_WORDS.items() for word in words if word.isalpha() and hero != "bus"}
_HEROES |= {word: hero for word, hero in SYNONYMS.items() if hero in HERO_WORDS}
SYNONYMS |= {f"{word}s": SYNONYMS.get(word, word) for word in _HEROES} | {"buses": "bus", "puppies": "rabbit"}

_FALLS = "(?:rain|snow|fog|mist|haze|clouds|storms?|wind)"
_IS_SO = "(?:raining|snowing|rainy|snowy|foggy|misty|hazy|cloudy|stormy)"
_STOP = "(?:stops?|ends?|ceases?|passes|fades|lifts|dissolves|dies down|goes away|(?:is|are) (?:over|gone))"
_ENDS = f"(?:{_STOP}|(?:begins?|starts?) to (?:stop|end|cease|pass|fade|lift|dissolve|die down|go away))"
_MOVING = "|".join(sorted({pair.split("|")[1].split()[0] for pairs in MOTION_WORDS.values() for pair in pairs}))

# The same for what takes several words.
PHRASES = {
    rf"\b(?:no|without|without any) {_FALLS}(?: (?:and|or|nor)(?: no| any)? {_FALLS})*\b": "in dry weather",
    rf"\b(?:not|isn't|wasn't) {_IS_SO}(?: (?:and|or|nor) {_IS_SO})*\b": "in dry weather",
    r"\bthe camera (?!does not move)(?:is not|isn't|does not|doesn't|never) (?:mov|pan|sweep|follow|track)\w+"
    r"(?: left| right| it)?\b": "the camera stands still",
    r"(?<!camera )\b(?:(?:is|are|does|do) not|(?:is|are|does|do)n't) mov(?:e|ing)(?: along)?\b": "stands still",
    rf"\b(?:the )?{_FALLS}(?: (?:and|or)(?: the)? {_FALLS})* {_ENDS}(?: away)?\b": "the weather clears",
    rf"\bthe night {_ENDS}\b": "the day breaks",
    r"(?<!without )(?<!without a )\b(?:(?:a|the) )?storm\b": "a heavy shower",
    r"\b(?:it )?(?:stops|ceases) (?:raining|snowing)\b": "the weather clears",
    rf"\b(?:stops|ceases) (?:moving|driving|walking|running|jumping|swimming|{_MOVING})\b": "stands still",
    rf"\b(?:it|the (?:{'|'.join(_HEROES)})) stops(?=\s*(?:[,.;!]|$))": "it stands still",
    r"\b(?:(?:starts|begins) raining|make it rain)\b": "starts to rain",
    r"\b(?:(?:starts|begins) snowing|make it snow)\b": "starts to snow",
    r"\bin (?:a|the) (?:field|park|garden)\b": "in a meadow",
    r"\bnew york(?: city)?\b": "the city",
}


def finite(verb: str) -> str:
    return verb.split("|")[0]


def participle(verb: str) -> str:
    return verb.split("|")[1]


def motion_words(motion: str, hero: str, lane: str) -> list[str]:
    """Verb pairs of a motion that suit the hero."""
    if motion != "stays":
        words = MOTION_WORDS[motion]
        unsuitable = {"boat": "swims", "duck": "cruises"}.get(hero)
        return [w for w in words if unsuitable is None or not w.startswith(unsuitable)]
    return PARKED + STAY_WORDS[lane] if hero in ("car", "bus") else STAY_WORDS[lane]


def place_kind(lane: str, motion: str | None) -> str:
    return "over" if lane == "air" else "past" if motion == "drives" else "in"
