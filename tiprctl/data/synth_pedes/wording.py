"""Describes a person in English, the way annotators do: in many words for one thing, with omissions and mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

from tiprctl.data.synth_pedes.people import COLOURS, HAIR_COLOURS, Person

COLOUR_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: (name,) for name in COLOURS}
    | {
        "grey": ("grey", "gray"),
        "light blue": ("light blue", "sky blue", "pale blue"),
        "navy": ("navy", "navy blue", "dark blue"),
        "purple": ("purple", "violet"),
        "turquoise": ("turquoise", "teal"),
        "burgundy": ("burgundy", "maroon", "dark red"),
        "beige": ("beige", "tan", "cream"),
    }
)
HAIR_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: (name,) for name in HAIR_COLOURS}
    | {"blonde": ("blonde", "fair"), "grey": ("grey", "gray"), "red": ("red", "ginger")}
)
THING_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "woman": ("woman", "woman", "lady", "female"),
        "man": ("man", "man", "guy", "male"),
        "cap": ("cap", "baseball cap"),
        "beanie": ("beanie", "knit hat", "woolly hat"),
        "brimmed hat": ("wide-brimmed hat", "brimmed hat", "hat with a brim"),
        "glasses": ("glasses", "eyeglasses", "spectacles"),
        "sunglasses": ("sunglasses", "shades"),
        "t-shirt": ("t-shirt", "tee shirt", "tee"),
        "shirt": ("shirt", "button-up shirt", "collared shirt"),
        "sweater": ("sweater", "jumper", "pullover"),
        "hoodie": ("hoodie", "hooded sweatshirt"),
        "tank top": ("tank top",),
        "dress": ("dress",),
        "jacket": ("jacket",),
        "coat": ("coat", "coat", "overcoat"),
        "trousers": ("trousers", "pants", "pants", "slacks"),
        "shorts": ("shorts",),
        "skirt": ("skirt", "knee-length skirt"),
        "long skirt": ("long skirt", "ankle-length skirt", "maxi skirt"),
        "shoes": ("shoes", "shoes", "sneakers", "trainers"),
        "boots": ("boots",),
        "backpack": ("backpack", "rucksack"),
        "shoulder bag": ("shoulder bag", "messenger bag", "cross-body bag"),
        "handbag": ("handbag", "purse"),
        "suitcase": ("suitcase", "rolling suitcase", "trolley case"),
        "shopping bag": ("shopping bag",),
        "umbrella": ("umbrella", "folded umbrella"),
        "newspaper": ("newspaper",),
        "striped": ("striped", "stripy"),
        "checked": ("checked", "plaid", "checkered"),
        "dotted": ("dotted", "polka dot", "spotted"),
    }
)

_ANYONE = ("person", "pedestrian")
_WALKS = {
    "front": ("is walking towards the camera", "is coming closer", "is facing the camera"),
    "back": ("is walking away", "is walking away from the camera", "is seen from behind"),
    "left": ("is walking to the left", "is seen from the side", "is heading left"),
    "right": ("is walking to the right", "is seen from the side", "is heading right"),
}
_FILLERS = (
    "is walking down the street",
    "is walking along the pavement",
    "is walking along",
    "is strolling along without any hurry",
    "is walking at a steady pace",
    "is out walking on what looks like an ordinary day",
    "is on the way somewhere",
    "is passing by",
)
_LOOKS = (
    "looking straight ahead",
    "looking around",
    "looking at something in the distance",
    "taking a step forward",
    "with one foot before the other",
)
_CLOSINGS = (
    "seems to be in no hurry",
    "looks as if on the way to meet someone",
    "appears to be thinking about something else",
    "does not seem to notice the camera",
    "was caught in the middle of a step",
)
_PLURAL = ("trousers", "shorts", "shoes", "boots")


@dataclass(frozen=True)
class Manner:
    """How the annotators write.

    Args:
        mistakes: probability that a colour is misread.
        typos: probability that a word is misspelt.
        short: probability of a caption of a few garments alone.
        thorough: least probability with which a detail that is seen is told.
        closings: how many sentences may follow that say nothing of the person's looks.
        closing: probability of each of them.
        long: words after which none follows.
    """

    mistakes: float = 0.045
    typos: float = 0.045
    short: float = 0.08
    thorough: float = 0.0
    closings: int = 1
    closing: float = 0.42
    long: int = 38


USUAL = Manner()
HARD = Manner(mistakes=0.14, typos=0.1, short=0.0, thorough=0.95, closings=3, closing=1.0, long=42)


@dataclass(frozen=True)
class Caption:
    """A sentence or a few about one image.

    Args:
        text: the caption.
        mentions: what it says, attribute to value, mistakes included.
        mistakes: the attributes that it gets wrong, and `typo` when a word is misspelt.
    """

    text: str
    mentions: Mapping[str, str]
    mistakes: tuple[str, ...]


def describe(person: Person, hidden: frozenset[str], view: str, rng: Random, manner: Manner = USUAL) -> Caption:
    """A caption for an image of `person` that does not show the `hidden` attributes."""
    seen = {name: value for name, value in person.attributes().items() if name not in hidden}
    writer = _Writer(seen, view, rng, manner)
    text = writer.short() if rng.random() < manner.short else writer.full()
    mistakes = tuple(name for name, value in writer.said.items() if value != seen[name])
    misspelt = _misspell(text, rng) if rng.random() < manner.typos else text
    return Caption(misspelt, writer.said, mistakes if misspelt == text else (*mistakes, "typo"))


class _Writer:
    """Puts what is seen into words and keeps a record of what it said."""

    def __init__(self, seen: Mapping[str, str], view: str, rng: Random, manner: Manner):
        self.seen, self.view, self.rng, self.manner = seen, view, rng, manner
        self.said: dict[str, str] = {}
        colours = [name for name in seen if name.endswith("_colour")]
        self.misread = rng.choice(colours) if colours and rng.random() < manner.mistakes else None
        gendered = self.chance(0.96)
        self.noun = self.word("gender") if gendered else rng.choice(_ANYONE)
        self.pronoun, self.possessive = f"the {self.noun}", "their"
        if gendered:
            self.pronoun, self.possessive = ("she", "her") if seen["gender"] == "woman" else ("he", "his")

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def tells(self, probability: float) -> bool:
        """Whether a detail is told that usual writers tell with `probability`."""
        return self.chance(max(probability, self.manner.thorough))

    def omits(self, probability: float) -> bool:
        """Whether a detail is left out that usual writers leave out with `probability`."""
        return self.chance(min(probability, 1 - self.manner.thorough))

    def tell(self, name: str) -> str:
        """The value of an attribute as the writer sees it, which goes on record."""
        value = self.seen[name]
        if name == self.misread:
            palette = HAIR_COLOURS if name == "hair_colour" else COLOURS
            value = self.rng.choice([colour for colour in palette if colour != value])
        self.said[name] = value
        return value

    def word(self, name: str) -> str:
        """An attribute's value in one of its wordings."""
        words = HAIR_WORDS if name == "hair_colour" else COLOUR_WORDS if name.endswith("_colour") else THING_WORDS
        return self.rng.choice(words[self.tell(name)])

    def short(self) -> str:
        """A few words: who, in what; often one garment alone."""
        garments = [self._outer] if "outer" in self.seen else [self._top]
        if "bottom" in self.seen:
            garments.append(lambda: self._plain("bottom"))
        told = self.rng.sample(garments, self.rng.randint(1, len(garments)))
        return _sentence(f"{_a(self.noun)} in {_list([tell() for tell in told])}")

    def full(self) -> str:
        """One to four sentences in one of several plans."""
        who, outfit = _a(self.noun), _list(self._outfit())
        rest = self._details()
        match self.rng.randrange(7):
            case 0:
                lead = [f"{who} in {outfit} {self._walk()}"]
            case 1:
                lead = [f"{who} {self._walk()}", f"{self.pronoun} {self._wears()} {outfit}"]
            case 2:
                lead = [f"wearing {outfit}, {who} {self._walk()}"]
            case 3:
                lead = [f"{who} {self._with(rest)}{self._wears()} {outfit}"]
            case 4:
                lead = [f"{who} wearing {outfit}{self._doing(rest)}"]
            case 5:
                lead = [f"the {self.noun} {self._with(rest)}is dressed in {outfit} and {self._walk()}"]
            case _:
                opening = self.rng.choice(("there is", "this is", "the picture shows", "we see"))
                lead = [f"{opening} {who} in {outfit}{self._doing(rest)}"]
        text = " ".join(_sentence(part) for part in lead + self._tail(rest))
        return text + self._closings(len(text.split()))

    def _closings(self, words: int) -> str:
        """Filler at the end of a text of so many words, no sentence of it twice."""
        text, left = "", list(_CLOSINGS)
        for _ in range(self.manner.closings):
            if words + len(text.split()) < self.manner.long and self.chance(self.manner.closing):
                closing = self.rng.choice(left)
                left.remove(closing)
                text += " " + _sentence(f"{self.pronoun} {closing}")
        return text

    def _walk(self) -> str:
        walk = self.rng.choice(_WALKS[self.view] if self.chance(0.45) else _FILLERS)
        return f"{walk}, {self.rng.choice(_LOOKS)}" if self.chance(0.5) else walk

    def _wears(self) -> str:
        return self.rng.choice(("wears", "is wearing", "has on"))

    def _with(self, rest: dict[str, list[str]]) -> str:
        """Move what the person has from `rest` to behind the noun: "with long black hair "."""
        return f"with {_list(rest.pop('has'))} " if "has" in rest else ""

    def _doing(self, rest: dict[str, list[str]]) -> str:
        """Move what the person carries from `rest` to the end of the sentence: ", carrying a red handbag"."""
        return f", carrying {_list(rest.pop('carries'))}" if "carries" in rest else ""

    def _tail(self, rest: dict[str, list[str]]) -> list[str]:
        """The sentences that tell what is left."""
        if not rest:
            return []
        verbs = list(rest)
        self.rng.shuffle(verbs)
        clauses = [f"{verb} {_list(rest[verb])}" for verb in verbs]
        subject = self.rng.choice((self.pronoun, f"the {self.noun}"))
        if len(clauses) == 3 and self.chance(0.5):
            return [f"{subject} {clauses[0]}", f"{self.pronoun} also {clauses[1]} and {clauses[2]}"]
        return [f"{subject} {_list(clauses)}"]

    def _outfit(self) -> list[str]:
        """The large garments in either order, sometimes with the shoes."""
        garments = []
        if "outer" in self.seen and self.chance(0.98):
            garments.append(self._outer())
        elif "top" in self.seen and ("outer" not in self.seen or self.chance(0.5)):
            garments.append(self._top())
        if "bottom" in self.seen and (not garments or self.chance(0.98)):
            garments.append(self._plain("bottom"))
        if self.chance(0.25):
            garments.reverse()
        if "shoes" in self.seen and self.chance(0.22):
            garments.append(self._plain("shoes"))
        return garments

    def _outer(self) -> str:
        closure = ""
        if "closure" in self.seen and self.tells(0.3):
            words = {"open": ("open", "unbuttoned"), "closed": ("buttoned-up", "closed")}
            closure = self.rng.choice(words[self.tell("closure")]) + " "
        coat = _a(f"{closure}{self.word('outer_colour')} {self.word('outer')}")
        if "top_colour" not in self.seen or self.omits(0.04):
            return coat
        top = self._top()
        return self.rng.choice((f"{coat} over {top}", f"{coat} over {top}", f"{coat} with {top} underneath"))

    def _top(self) -> str:
        """A top with its sleeves, colour and pattern, each of them but the colour sometimes left out."""
        kind = self.rng.choice(("top", "shirt"))
        if self.seen["top"] == "dress" or (self.seen["top"] != "top" and self.tells(0.85)):
            kind = self.word("top")
        sleeves = ""
        if self.seen.get("sleeves") and kind != "tank top" and self.tells(0.35):
            told = self.tell("sleeves")
            sleeves = "sleeveless " if told == "none" else f"{told}-sleeved "
        colour = self.word("dress_colour" if self.seen["top"] == "dress" else "top_colour")
        pattern = self.seen.get("pattern", "plain")
        if pattern == "plain" or self.omits(0.15):
            return _a(f"{sleeves}{colour} {kind}")
        self.tell("pattern")
        if pattern == "print":
            where = self.rng.choice(("on the front", "on the chest", ""))
            mark = _a(f"{self.word('pattern_colour')} {self.rng.choice(('print', 'logo'))}")
            return _a(f"{sleeves}{colour} {kind} with {mark} {where}".strip())
        if self.chance(0.45):
            marks = {"striped": "stripes", "checked": "checks", "dotted": self.rng.choice(("dots", "spots"))}
            return _a(f"{sleeves}{colour} {kind} with {self.word('pattern_colour')} {marks[pattern]}")
        if self.chance(0.6):
            colour = f"{colour} and {self.word('pattern_colour')}"
        return _a(f"{sleeves}{colour} {self.word('pattern')} {kind}")

    def _plain(self, name: str) -> str:
        """A thing with its colour: "black trousers", "a red cap"."""
        colour = f"{self.word(f'{name}_colour')} " if f"{name}_colour" in self.seen else ""
        thing = self.word(name)
        if self.said[name] == "trousers" and self.said["bottom_colour"] in ("blue", "navy", "light blue"):
            thing = self.rng.choice((thing, "jeans"))
        if self.said[name] not in _PLURAL:
            return _a(colour + thing)
        return f"a pair of {colour}{thing}" if self.chance(0.2) else colour + thing

    def _details(self) -> dict[str, list[str]]:
        """What is told beside the large garments, by its verb."""
        details: dict[str, list[str]] = {"has": [], "wears": [], "carries": []}
        if ("hair" in self.seen and self.tells(0.7)) or self.seen.get("hair") == "bald":
            details["has"].append(self._hair())
        elif "hair_colour" in self.seen and self.tells(0.5):
            details["has"].append(f"{self.word('hair_colour')} hair")
        if "hat" in self.seen and self.tells(0.85):
            details["wears"].append(self._plain("hat"))
        if "glasses" in self.seen and self.tells(0.65):
            details["wears"].append(self.word("glasses"))
        if "shoes" in self.seen and "shoes" not in self.said and self.tells(0.6):
            details["wears"].append(self._plain("shoes"))
        if "bag" in self.seen and self.tells(0.85):
            bag = self._plain("bag")
            worn = {"backpack": f" on {self.possessive} back", "shoulder bag": f" over {self.possessive} shoulder"}
            details["carries"].append(bag + (worn.get(self.said["bag"], "") if self.chance(0.4) else ""))
        if "carried" in self.seen and self.tells(0.85):
            details["carries"].append(self._plain("carried"))
        return {verb: things for verb, things in details.items() if things}

    def _hair(self) -> str:
        style = self.tell("hair")
        if style == "bald":
            return self.rng.choice(("a bald head", "a shaved head"))
        colour = self.word("hair_colour")
        if style in ("long", "short"):
            return f"{style} {colour} hair"
        return self.rng.choice((f"{_a(colour)} {style}", f"{colour} hair tied in a {style}"))


def _a(phrase: str) -> str:
    """`phrase` with its indefinite article."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _list(items: Sequence[str]) -> str:
    """ "a, b and c", with a comma before the last when an item has an "and" of its own."""
    if len(items) == 1:
        return items[0]
    comma = "," if len(items) > 2 and any(" and " in item for item in items) else ""
    return f"{', '.join(items[:-1])}{comma} and {items[-1]}"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _misspell(text: str, rng: Random) -> str:
    """`text` with two inner letters of a longer word exchanged, or one left out; as it is where all are short."""
    words = text.split(" ")
    longer = [index for index, word in enumerate(words) if len(word.strip(".,")) >= 5]
    if not longer:
        return text
    index = rng.choice(longer)
    word, spot = words[index], rng.randint(1, len(words[index].strip(".,")) - 3)
    swapped = word[:spot] + word[spot + 1] + word[spot] + word[spot + 2 :]
    words[index] = word[:spot] + word[spot + 1 :] if swapped == word or rng.random() < 0.5 else swapped
    return " ".join(words)
