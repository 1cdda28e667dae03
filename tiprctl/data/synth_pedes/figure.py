"""What a drawn person is made of, whatever side the camera sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tiprctl.data.synth_pedes.brush import Brush, Point, Profile, across, band, strip, tone
from tiprctl.data.synth_pedes.people import COLOURS, HAIR_COLOURS, RGB, Person

DARK: RGB = (36, 30, 30)
_PAPER: RGB = (236, 234, 224)


@dataclass(frozen=True)
class Pose:
    """How a person stands before the camera.

    Args:
        view: one of `people.VIEWS`.
        stride: how far the feet are apart, 0 to 1.
        swing: how far the arms swing, -1 to 1.
    """

    view: str
    stride: float
    swing: float


class Figure:
    """What the views share: the person's own shades, and parts that are drawn alike from every side."""

    def __init__(self, brush: Brush, person: Person, pose: Pose):
        self.brush, self.person, self.pose = brush, person, pose
        self.skin = person.skin
        self.lips = (186, 62, 70) if person.gender == "woman" else tone(person.skin, 0.62)
        self.hair = self.skin if person.hair_colour is None else HAIR_COLOURS[person.hair_colour]
        rng = Random(person.dye)
        self.top, self.pattern, self.outer, self.bottom, self.shoes, self.bag, self.carried, self.hat = (
            _dyed(colour, rng)
            for colour in (
                person.top_colour or person.dress_colour,
                person.pattern_colour,
                person.outer_colour,
                person.bottom_colour,
                person.shoes_colour,
                person.bag_colour,
                person.carried_colour,
                person.hat_colour,
            )
        )

    def leg(self, hip: Point, knee: Point, ankle: Point) -> None:
        """A leg with what covers it."""
        joints, bottom = (hip, knee, ankle), self.person.bottom
        if bottom == "trousers":
            self.brush.limb(joints, (0.094, 0.074, 0.062), self.bottom)
        else:
            self.brush.limb(joints, (0.082, 0.058, 0.042), self.skin)
        if bottom == "shorts":
            self.brush.limb((hip, between(hip, knee, 0.4), between(hip, knee, 0.82)), (0.092, 0.088, 0.08), self.bottom)
        if self.person.shoes == "boots":
            self.brush.limb((between(knee, ankle, 0.42), ankle), (0.068, 0.056), self.shoes)

    def arm(self, shoulder: Point, elbow: Point, wrist: Point) -> None:
        """An arm with its sleeve and hand."""
        cloth = self.outer or self.top
        sleeves = "long" if self.person.outer else self.person.sleeves
        self.brush.oval(*between(elbow, wrist, 1.12), 0.024, 0.026, tone(self.skin, 0.95))
        if sleeves == "long":
            self.brush.limb((shoulder, elbow, wrist), (0.066, 0.058, 0.048), cloth)
            return
        self.brush.limb((shoulder, elbow, wrist), (0.05, 0.043, 0.035), self.skin)
        if sleeves == "short":
            self.brush.limb((shoulder, between(shoulder, elbow, 0.62)), (0.07, 0.066), cloth)

    def decorate(self, profile: Profile) -> None:
        """The pattern of the top on its visible outline."""
        paint = {"striped": self._stripes, "checked": self._checks, "dotted": self._dots, "print": self._print}
        if self.person.pattern in paint:
            paint[self.person.pattern](profile)

    def _stripes(self, profile: Profile) -> None:
        y, end = profile[0][0] + 0.03, profile[-1][0]
        while y + 0.024 < end:
            self.brush.profile(band(profile, y, y + 0.024), self.pattern)
            y += 0.054

    def _checks(self, profile: Profile) -> None:
        y, end = profile[0][0] + 0.03, profile[-1][0]
        while y + 0.014 < end:
            self.brush.profile(band(profile, y, y + 0.014), self.pattern)
            y += 0.056
        for middle in (0.17, 0.5, 0.83):
            self.brush.profile(strip(profile[1:], middle - 0.035, middle + 0.035), self.pattern)

    def _dots(self, profile: Profile) -> None:
        y, end, shifted = profile[0][0] + 0.035, profile[-1][0], False
        while y + 0.012 < end:
            left, right = across(profile, y)
            for part in (0.32, 0.68) if shifted else (0.12, 0.5, 0.88):
                self.brush.oval(left + part * (right - left), y, 0.0145, 0.0145, self.pattern)
            y, shifted = y + 0.042, not shifted

    def _print(self, profile: Profile) -> None:
        if self.pose.view == "front":
            self.brush.oval(0, 0.288, 0.048, 0.04, self.pattern)
            self.brush.shape([(-0.05, 0.335), (0.05, 0.335), (0.05, 0.352), (-0.05, 0.352)], self.pattern)
            self.brush.oval(0, 0.288, 0.02, 0.016, self.top)

    def box(self, x: float, y: float, width: float, height: float, colour: RGB) -> None:
        """A bag: a cloth box with rounded corners whose upper edge is centred at (x, y)."""
        half = width / 2
        rows = [
            (y, x - half * 0.8, x + half * 0.8),
            (y + 0.02, x - half, x + half),
            (y + height - 0.015, x - half, x + half),
            (y + height, x - half * 0.85, x + half * 0.85),
        ]
        self.brush.cloth(rows, colour)

    def hand_bag(self, hand: Point) -> None:
        x, y = hand
        handle = [(x - 0.04, y + 0.085), (x - 0.012, y + 0.01), (x + 0.012, y + 0.01), (x + 0.04, y + 0.085)]
        self.brush.stroke(handle, 0.011, tone(self.bag, 0.65))
        self.box(x, y + 0.07, 0.125, 0.1, self.bag)
        self.brush.oval(x, y + 0.095, 0.009, 0.009, tone(self.bag, 1.6))

    def luggage(self, hand: Point, aside: float) -> None:
        """What hangs from the right hand, or rolls beside it: `aside` is the direction away from the body."""
        x, y = hand
        match self.person.carried:
            case "suitcase":
                x += aside * 0.045
                self.brush.stroke([hand, (x, 0.7)], 0.012, DARK)
                self.box(x, 0.67, 0.125, 0.26, self.carried)
                for ridge in (0.73, 0.79, 0.85):
                    self.brush.stroke([(x - 0.05, ridge), (x + 0.05, ridge)], 0.007, tone(self.carried, 0.72))
                for wheel in (-0.04, 0.04):
                    self.brush.oval(x + wheel, 0.945, 0.014, 0.014, DARK)
            case "shopping bag":
                handle = [(x - 0.03, y + 0.06), (x, y), (x + 0.03, y + 0.06)]
                self.brush.stroke(handle, 0.009, tone(self.carried, 0.7))
                rows = [(y + 0.05, x - 0.058, x + 0.058), (y + 0.21, x - 0.07, x + 0.07)]
                self.brush.cloth(rows, self.carried)
                self.brush.profile(band(strip(rows, 0.3, 0.7), y + 0.1, y + 0.15), tone(self.carried, 1.35))
            case "umbrella":
                self.brush.stroke([(x, y - 0.045), (x + aside * 0.02, y + 0.4)], 0.012, DARK)
                rows = [
                    (y + 0.03, x - 0.014, x + 0.014),
                    (y + 0.09, x - 0.036, x + 0.036),
                    (y + 0.36, x + aside * 0.018 - 0.01, x + aside * 0.018 + 0.01),
                ]
                self.brush.cloth(rows, self.carried)

    def newspaper(self, x: float, y: float) -> None:
        rows = [(y, x - 0.065, x + 0.065), (y + 0.115, x - 0.065, x + 0.065)]
        self.brush.cloth(rows, _PAPER)
        for line in (0.03, 0.055, 0.08):
            self.brush.stroke([(x - 0.045, y + line), (x + 0.045, y + line)], 0.008, (150, 150, 146))

    def head_cover(self, x: float, peak: float) -> None:
        """The hat; `peak` is the x of the middle of a cap's peak, seen from behind there is none."""
        dark = tone(self.hat, 0.72) if self.person.hat else DARK
        match self.person.hat:
            case "cap":
                self.brush.dome(x, 0.068, 0.07, 0.074, self.hat)
                if self.pose.view != "back":
                    self.brush.oval(peak, 0.068, 0.058, 0.015, dark)
            case "beanie":
                self.brush.oval(x, -0.016, 0.022, 0.022, tone(self.hat, 1.2))
                self.brush.dome(x, 0.07, 0.07, 0.085, self.hat)
                self.brush.stroke([(x - 0.068, 0.066), (x + 0.068, 0.066)], 0.026, dark)
            case "brimmed hat":
                self.brush.dome(x, 0.055, 0.062, 0.074, self.hat)
                self.brush.stroke([(x - 0.06, 0.042), (x + 0.06, 0.042)], 0.018, dark)
                self.brush.oval(x, 0.058, 0.118, 0.019, self.hat)


def glasses(brush: Brush, eyes: Sequence[float], kind: str) -> None:
    """Glasses or sunglasses before eyes at the given x."""
    for x in eyes:
        if kind == "sunglasses":
            brush.oval(x, 0.094, 0.024, 0.02, (18, 18, 22))
        else:
            brush.oval(x, 0.094, 0.022, 0.02, (206, 222, 232))
            brush.oval(x, 0.094, 0.007, 0.008, DARK)
            brush.ring(x, 0.094, 0.023, 0.009, (24, 22, 24))
    brush.stroke([(eyes[0], 0.09), (eyes[-1], 0.09)], 0.008, (18, 18, 22))


def _dyed(colour: str | None, rng: Random) -> RGB | None:
    """The person's own shade of a colour; the generator moves on even when there is nothing to dye."""
    light, shifts = rng.uniform(0.9, 1.08), [rng.randint(-9, 9) for _ in range(3)]
    if colour is None:
        return None
    red, green, blue = (
        min(255, max(0, int(channel * light) + shift)) for channel, shift in zip(COLOURS[colour], shifts)
    )
    return red, green, blue


def between(start: Point, end: Point, part: float) -> Point:
    """The point that lies the given part of the way from `start` to `end`, beyond `end` when over 1."""
    return start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])
