"""Who walks through `synth-pedes`: the attributes of a person, how they are drawn at random, and what a view shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from random import Random
from types import MappingProxyType

RGB = tuple[int, int, int]

COLOURS: Mapping[str, RGB] = MappingProxyType(
    {
        "black": (30, 30, 34),
        "white": (240, 240, 238),
        "grey": (132, 134, 138),
        "red": (200, 30, 38),
        "pink": (244, 148, 184),
        "orange": (240, 126, 28),
        "yellow": (244, 210, 52),
        "green": (44, 146, 72),
        "light blue": (142, 198, 238),
        "blue": (34, 92, 214),
        "navy": (26, 34, 92),
        "purple": (126, 62, 170),
        "turquoise": (36, 186, 180),
        "burgundy": (116, 18, 52),
        "brown": (124, 78, 42),
        "beige": (218, 194, 154),
    }
)
HAIR_COLOURS: Mapping[str, RGB] = MappingProxyType(
    {
        "black": (32, 28, 28),
        "brown": (98, 60, 34),
        "blonde": (226, 188, 104),
        "grey": (172, 172, 172),
        "red": (176, 74, 30),
    }
)

VIEWS = ("front", "back", "left", "right")
"""The side of the person that the camera sees: `left` is a person who walks towards the left border of the image."""

MAIN_ATTRIBUTES = ("gender", "dress_colour", "top_colour", "outer_colour", "bottom_colour")
"""What decides most queries: the gender and the colours of the large garments."""

_TOP_WEIGHTS = dict.fromkeys(COLOURS, 1.0) | {"black": 1.2, "white": 1.3}
_OUTER_WEIGHTS = dict.fromkeys(COLOURS, 1.0) | {"black": 1.3, "white": 0.7}
_BOTTOM_WEIGHTS = dict.fromkeys(COLOURS, 1.0) | {"black": 1.4, "blue": 1.3, "grey": 1.2}
_SHOE_WEIGHTS = {"black": 3.0, "white": 3.0, "brown": 2.0, "grey": 1.0, "red": 1.5, "blue": 1.0, "pink": 0.7}
_BAG_WEIGHTS = dict.fromkeys(COLOURS, 1.0) | {"black": 2.5, "brown": 1.5}


@dataclass(frozen=True)
class Person:
    """One identity: what captions may tell of it, and below that the looks that no caption mentions.

    Two persons are equal when captions could not tell them apart. `None` says that there is no such thing: no bag, no
    top to be seen under a closed coat, no lower garment under a dress. The shoulder bag and the handbag are on the
    person's left, what is carried is in the right hand.
    """

    gender: str
    hair: str
    hair_colour: str | None
    hat: str | None
    hat_colour: str | None
    glasses: str | None
    top: str | None
    top_colour: str | None
    dress_colour: str | None
    pattern: str | None
    pattern_colour: str | None
    sleeves: str | None
    outer: str | None
    outer_colour: str | None
    closure: str | None
    bottom: str | None
    bottom_colour: str | None
    shoes: str
    shoes_colour: str
    bag: str | None
    bag_colour: str | None
    carried: str | None
    carried_colour: str | None
    skin: RGB = field(compare=False)
    build: float = field(compare=False)
    dye: int = field(compare=False)
    """Seed of the small differences between two garments of one colour name."""

    def attributes(self) -> dict[str, str]:
        """The attributes that captions may tell, without those that the person lacks."""
        return {name: value for name in ATTRIBUTES if (value := getattr(self, name)) is not None}


ATTRIBUTES = tuple(item.name for item in fields(Person) if item.compare)

SKINS: tuple[RGB, ...] = (
    (246, 214, 188),
    (232, 190, 156),
    (208, 158, 120),
    (168, 116, 80),
    (118, 78, 54),
    (84, 56, 42),
)


FIRST = {"gender": "woman", "outer": "coat", "outer_colour": "red"}
"""What the first person is, so that "woman in red coat", the example everywhere, has an answer in each data set."""


def unique_people(seed: int) -> Iterator[Person]:
    """Persons without end, no two of them equal, the same ones for the same seed; the first one fits `FIRST`.

    Two persons in large garments of the same colours tend not to meet in one split: nine in ten of them are turned
    away when the other came shortly before.
    """
    rng = Random(f"people:{seed}")
    known: set[Person] = set()
    recent: deque[tuple[str | None, ...]] = deque(maxlen=300)
    while True:
        person = sample_person(rng)
        if not known and any(getattr(person, name) != value for name, value in FIRST.items()):
            continue
        main = tuple(getattr(person, name) for name in MAIN_ATTRIBUTES)
        if person in known or (main in recent and rng.random() < 0.9):
            continue
        known.add(person)
        recent.append(main)
        yield person


FAMILY = 4
"""How many look-alikes a family has at most."""

_KINDS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "hat": ("cap", "beanie", "brimmed hat"),
        "glasses": ("glasses", "sunglasses"),
        "shoes": ("shoes", "boots"),
        "bag": ("backpack", "shoulder bag"),
        "carried": ("suitcase", "shopping bag", "umbrella"),
    }
)
_COLOURED = tuple(name for name in ATTRIBUTES if name.endswith("_colour"))
"""The attributes in which look-alikes may differ: these kinds of things, and all colours."""


def families(seed: int) -> Iterator[list[Person]]:
    """Families without end: persons who differ from each other in the value of one attribute alone.

    They share everything else, down to the shades of their clothes; the attribute is one that captions can tell and
    that at least one view shows. No two persons of all families are equal, the same ones come for the same seed, and
    the first one fits `FIRST`.
    """
    rng = Random(f"families:{seed}")
    known: set[Person] = set()
    for person in unique_people(seed):
        if person not in known:
            family = [one for one in _look_alikes(person, rng) if one not in known]
            known.update(family)
            yield family


def _look_alikes(person: Person, rng: Random) -> list[Person]:
    """`person`, and others with another value of one attribute."""
    others = {name: values for name in (*_KINDS, *_COLOURED) if (values := _other_values(person, name))}
    name = rng.choice(list(others))
    values = rng.sample(others[name], min(FAMILY - 1, len(others[name])))
    return [person, *(replace(person, **{name: value}) for value in values)]


def _other_values(person: Person, name: str) -> list[str]:
    """What else the attribute might be, the rest of the person as it is; nothing where no view shows it."""
    value = getattr(person, name)
    if value is None or all(name in hidden_attributes(person, view) for view in VIEWS):
        return []
    choices = dict.fromkeys(_KINDS.get(name) or _colours(person, name))
    return [choice for choice in choices if value in choices and choice != value]


def _colours(person: Person, name: str) -> Sequence[str]:
    """The colours of a thing that go with the person's other colours."""
    match name:
        case "hair_colour":
            return tuple(HAIR_COLOURS)
        case "pattern_colour":
            return _contrast(person.dress_colour or person.top_colour)
        case "top_colour" | "dress_colour":
            grounds = [colour for colour in COLOURS if person.pattern_colour in (None, *_contrast(colour))]
            return [colour for colour in grounds if colour != person.outer_colour]
        case "outer_colour":
            return [colour for colour in COLOURS if colour != person.top_colour]
        case _:
            return tuple(COLOURS)


def sample_person(rng: Random) -> Person:
    """A person at random."""
    gender = rng.choice(("woman", "man"))
    clothes = _sample_dress(rng) if gender == "woman" and rng.random() < 0.1 else _sample_layers(rng, gender)
    return Person(
        gender=gender,
        **_sample_head(rng, gender),
        **clothes,
        shoes="boots" if rng.random() < 0.25 else "shoes",
        shoes_colour=_weighted(rng, _SHOE_WEIGHTS),
        **_sample_luggage(rng, gender),
        skin=rng.choice(SKINS),
        build=rng.uniform(0.92, 1.08),
        dye=rng.getrandbits(32),
    )


def hidden_attributes(person: Person, view: str) -> frozenset[str]:
    """The attributes of `person` that cannot be seen from `view`, so that no caption of that image may tell them."""
    hidden = set()
    if view != "front":
        hidden |= {"closure"}
        if person.outer is not None:
            hidden |= {"pattern", "pattern_colour"}
    if view == "back":
        hidden |= {"glasses"}
        if person.outer is not None:
            hidden |= {"top", "top_colour"}
        if person.carried == "newspaper":
            hidden |= {"carried", "carried_colour"}
    if person.pattern == "print" and view != "front":
        hidden |= {"pattern", "pattern_colour"}
    if person.hat is not None and person.hair == "short":
        hidden |= {"hair", "hair_colour"}
    if person.hair == "ponytail" and view == "front":
        hidden |= {"hair"}
    if view == "right" and person.bag in ("shoulder bag", "handbag"):
        hidden |= {"bag", "bag_colour"}
    if view == "left" and person.carried not in (None, "newspaper"):
        hidden |= {"carried", "carried_colour"}
    return frozenset(hidden)


def _weighted(rng: Random, weights: Mapping[str, float], other_than: str | None = None) -> str:
    choices = {name: weight for name, weight in weights.items() if name != other_than}
    return rng.choices(list(choices), list(choices.values()))[0]


def _sample_head(rng: Random, gender: str) -> dict[str, str | None]:
    hat = rng.choice(("cap", "beanie", "brimmed hat")) if rng.random() < 0.24 else None
    if gender == "woman":
        styles = {"long": 5, "short": 2} if hat else {"long": 4, "short": 2, "ponytail": 2, "bun": 1.5}
    else:
        styles = {"short": 9, "long": 1} if hat else {"short": 8, "long": 1, "bald": 1.5}
    hair = _weighted(rng, styles)
    return {
        "hair": hair,
        "hair_colour": None if hair == "bald" else _weighted(rng, dict(zip(HAIR_COLOURS, (4, 4, 3, 1.5, 1.5)))),
        "hat": hat,
        "hat_colour": _weighted(rng, _BAG_WEIGHTS) if hat else None,
        "glasses": _weighted(rng, {"glasses": 1, "sunglasses": 1}) if rng.random() < 0.22 else None,
    }


def _sample_dress(rng: Random) -> dict[str, str | None]:
    colour = _weighted(rng, _TOP_WEIGHTS)
    pattern = _weighted(rng, {"plain": 2, "striped": 1, "dotted": 2})
    return {
        "top": "dress",
        "dress_colour": colour,
        **_pattern(rng, pattern, colour),
        "sleeves": rng.choice(("long", "short", "none")),
        **dict.fromkeys(("top_colour", "outer", "outer_colour", "closure", "bottom", "bottom_colour")),
    }


def _sample_layers(rng: Random, gender: str) -> dict[str, str | None]:
    outer = _weighted(rng, {"none": 9, "jacket": 6, "coat": 5})
    if outer == "coat":
        bottoms = {"trousers": 5, "long skirt": 1} if gender == "woman" else {"trousers": 1}
    elif gender == "woman":
        bottoms = {"trousers": 5, "shorts": 2, "skirt": 3, "long skirt": 1.5}
    else:
        bottoms = {"trousers": 5, "shorts": 2}
    bottom = {
        "bottom": _weighted(rng, bottoms),
        "bottom_colour": _weighted(rng, _BOTTOM_WEIGHTS),
        "dress_colour": None,
    }
    if outer == "none":
        return _sample_top(rng, gender) | dict.fromkeys(("outer", "outer_colour", "closure")) | bottom
    coat = {"outer": outer, "outer_colour": _weighted(rng, _OUTER_WEIGHTS)}
    if rng.random() < 0.3:
        unseen = dict.fromkeys(("top", "top_colour", "pattern", "pattern_colour", "sleeves"))
        return unseen | coat | {"closure": "closed"} | bottom
    colour = _weighted(rng, _TOP_WEIGHTS, other_than=coat["outer_colour"])
    layer = {"top": "top", "top_colour": colour, "sleeves": None}
    pattern = _pattern(rng, _weighted(rng, {"plain": 4, "striped": 1}), colour)
    return layer | pattern | coat | {"closure": "open"} | bottom


def _sample_top(rng: Random, gender: str) -> dict[str, str | None]:
    kinds = {"t-shirt": 4, "shirt": 3, "sweater": 3, "hoodie": 2, "tank top": 2 if gender == "woman" else 0.7}
    top = _weighted(rng, kinds)
    sleeves = {"t-shirt": "short", "tank top": "none"}.get(top, "long")
    if top == "shirt" and rng.random() < 0.3:
        sleeves = "short"
    patterns = {"plain": 5, "striped": 2.5, "checked": 1, "dotted": 1, "print": 1.5}
    if top == "shirt":
        patterns = {"plain": 4, "striped": 1.5, "checked": 3}
    colour = _weighted(rng, _TOP_WEIGHTS)
    return {
        "top": top,
        "top_colour": colour,
        **_pattern(rng, _weighted(rng, patterns), colour),
        "sleeves": sleeves,
    }


_PALE = ("white", "yellow", "beige", "pink", "light blue")


def _pattern(rng: Random, pattern: str, ground: str) -> dict[str, str | None]:
    """The pattern and its colour, which stands out against the ground colour."""
    if pattern == "plain":
        return {"pattern": "plain", "pattern_colour": None}
    return {"pattern": pattern, "pattern_colour": rng.choice(_contrast(ground))}


def _contrast(ground: str) -> tuple[str, ...]:
    """The colours that stand out against a ground colour, likelier ones several times."""
    if ground in ("grey", "orange", "green"):
        return ("white", "black")
    return ("black", "navy", "red", "blue", "green") if ground in _PALE else ("white", "white", "yellow")


def _sample_luggage(rng: Random, gender: str) -> dict[str, str | None]:
    bag = carried = None
    if rng.random() < 0.5:
        kinds = (
            {"backpack": 4, "shoulder bag": 3, "handbag": 3}
            if gender == "woman"
            else {"backpack": 4, "shoulder bag": 3}
        )
        bag = _weighted(rng, kinds)
    if rng.random() < 0.27:
        carried = rng.choice(("suitcase", "shopping bag", "umbrella", "newspaper"))
    return {
        "bag": bag,
        "bag_colour": _weighted(rng, _BAG_WEIGHTS) if bag else None,
        "carried": carried,
        "carried_colour": _weighted(rng, _BAG_WEIGHTS) if carried not in (None, "newspaper") else None,
    }
