"""Draws a person from the front, the back or a side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, sin
from random import Random

from tiprctl.data.synth_pedes.brush import Brush, Point, Profile, across, band, strip, tone
from tiprctl.data.synth_pedes.people import COLOURS, HAIR_COLOURS, RGB, Person

_DARK: RGB = (36, 30, 30)
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


def draw_person(brush: Brush, person: Person, pose: Pose) -> None:
    """Draw `person`; a side view faces along the brush's x, so a person who walks to the left needs a mirrored one."""
    if pose.view in ("front", "back"):
        _FacingFigure(brush, person, pose).draw()
    else:
        _SideFigure(brush, person, pose).draw()


class _Figure:
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
        if person.carried == "newspaper":
            self.carried = _PAPER

    def leg(self, hip: Point, knee: Point, ankle: Point) -> None:
        """A leg with what covers it."""
        joints, bottom = (hip, knee, ankle), self.person.bottom
        if bottom == "trousers":
            self.brush.limb(joints, (0.094, 0.074, 0.062), self.bottom)
        else:
            self.brush.limb(joints, (0.082, 0.058, 0.042), self.skin)
        if bottom == "shorts":
            self.brush.limb(
                (hip, _between(hip, knee, 0.4), _between(hip, knee, 0.82)), (0.092, 0.088, 0.08), self.bottom
            )
        if self.person.shoes == "boots":
            self.brush.limb((_between(knee, ankle, 0.42), ankle), (0.068, 0.056), self.shoes)

    def arm(self, shoulder: Point, elbow: Point, wrist: Point) -> None:
        """An arm with its sleeve and hand."""
        cloth = self.outer or self.top
        sleeves = "long" if self.person.outer else self.person.sleeves
        self.brush.oval(*_between(elbow, wrist, 1.12), 0.024, 0.026, tone(self.skin, 0.95))
        if sleeves == "long":
            self.brush.limb((shoulder, elbow, wrist), (0.066, 0.058, 0.048), cloth)
            return
        self.brush.limb((shoulder, elbow, wrist), (0.05, 0.043, 0.035), self.skin)
        if sleeves == "short":
            self.brush.limb((shoulder, _between(shoulder, elbow, 0.62)), (0.07, 0.066), cloth)

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
                self.brush.stroke([hand, (x, 0.7)], 0.012, _DARK)
                self.box(x, 0.67, 0.125, 0.26, self.carried)
                for ridge in (0.73, 0.79, 0.85):
                    self.brush.stroke([(x - 0.05, ridge), (x + 0.05, ridge)], 0.007, tone(self.carried, 0.72))
                for wheel in (-0.04, 0.04):
                    self.brush.oval(x + wheel, 0.945, 0.014, 0.014, _DARK)
            case "shopping bag":
                handle = [(x - 0.03, y + 0.06), (x, y), (x + 0.03, y + 0.06)]
                self.brush.stroke(handle, 0.009, tone(self.carried, 0.7))
                rows = [(y + 0.05, x - 0.058, x + 0.058), (y + 0.21, x - 0.07, x + 0.07)]
                self.brush.cloth(rows, self.carried)
                self.brush.profile(band(strip(rows, 0.3, 0.7), y + 0.1, y + 0.15), tone(self.carried, 1.35))
            case "umbrella":
                self.brush.stroke([(x, y - 0.045), (x + aside * 0.02, y + 0.4)], 0.012, _DARK)
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
        dark = tone(self.hat, 0.72) if self.person.hat else _DARK
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


class _FacingFigure(_Figure):
    """A person who walks towards the camera or away from it."""

    def __init__(self, brush: Brush, person: Person, pose: Pose):
        super().__init__(brush, person, pose)
        woman = person.gender == "woman"
        self.front = pose.view == "front"
        self.left = 1 if self.front else -1
        self.shoulder = (0.1 if woman else 0.116) * person.build
        self.waist = (0.071 if woman else 0.09) * person.build
        self.hip = (0.093 if woman else 0.089) * person.build

    def draw(self) -> None:
        if self.front:
            self._hair_behind()
        self._legs()
        self._skirt()
        torso = self._torso(0.5, self.hip)
        self._neck()
        self._clothes(torso)
        hands = self._arms()
        if self.front:
            self._straps()
            self._front_head()
        else:
            self._back_head()
        self._bags(hands)

    def _legs(self) -> None:
        step = 0.022 * self.pose.stride
        for side, lift in ((-1, step), (1, -step)):
            ankle = (side * (0.048 + 0.02 * self.pose.stride), 0.932 + lift)
            self._foot(ankle)
            self.leg((side * 0.044, 0.51), (side * 0.05, 0.73 + lift / 2), ankle)
            if self.front:
                self._foot(ankle)

    def _foot(self, ankle: Point) -> None:
        x, y = ankle
        self.brush.oval(x, y + 0.034, 0.037, 0.034, tone(self.shoes, 0.68))
        self.brush.oval(x, y + 0.03, 0.033, 0.03, self.shoes)

    def _skirt(self) -> None:
        flare = {"skirt": (0.68, 0.128), "long skirt": (0.88, 0.138)}.get(self.person.bottom)
        if flare:
            hem, half = flare
            rows = [(0.42, -self.waist, self.waist), (0.52, -self.hip, self.hip), (hem, -half, half)]
            self._folds(rows, self.bottom)
        elif self.person.bottom is not None:
            self.brush.profile([(0.45, -self.hip, self.hip), (0.53, -self.hip, self.hip)], self.bottom)

    def _folds(self, rows: Profile, colour: RGB) -> None:
        self.brush.cloth(rows, colour)
        for part in (0.35, 0.62):
            self.brush.profile(strip(rows[1:], part, part + 0.04), tone(colour, 0.85))

    def _torso(self, hem: float, half: float) -> Profile:
        shoulder, waist = self.shoulder, self.waist
        return [
            (0.172, -0.036, 0.036),
            (0.19, -shoulder * 0.86, shoulder * 0.86),
            (0.212, -shoulder, shoulder),
            (0.37, -waist, waist),
            (0.5, -self.hip, self.hip),
            *([(hem, -half, half)] if hem > 0.5 else []),
        ]

    def _neck(self) -> None:
        self.brush.limb([(0, 0.13), (0, 0.18)], (0.05, 0.056), tone(self.skin, 0.92))

    def _clothes(self, torso: Profile) -> None:
        person = self.person
        if person.top == "dress":
            torso = self._torso(0.7, 0.135)
        if person.top is not None:
            self.brush.cloth(torso, self.top)
            self.decorate(torso)
            self._neckline()
        if person.outer is not None:
            hem, half = (0.7, 0.13) if person.outer == "coat" else (0.52, self.hip + 0.008)
            self._outer([(y, left - 0.006, right + 0.006) for y, left, right in self._torso(hem, half)])

    def _neckline(self) -> None:
        brush, top = self.brush, self.person.top
        if top == "hoodie":
            brush.oval(0, 0.176, 0.074, 0.028, tone(self.top, 0.75))
            if self.front:
                brush.oval(0, 0.17, 0.04, 0.016, tone(self.skin, 0.9))
                pouch = [(0.4, -0.045, 0.045), (0.46, -0.06, 0.06)]
                brush.profile(pouch, tone(self.top, 0.78))
            else:
                brush.oval(0, 0.2, 0.058, 0.045, tone(self.top, 0.85))
        elif self.front and top == "shirt":
            brush.stroke([(0, 0.18), (0, 0.49)], 0.008, tone(self.top, 0.62))
            for side in (-1, 1):
                brush.shape([(side * 0.008, 0.205), (side * 0.045, 0.2), (side * 0.034, 0.165)], tone(self.top, 1.25))
        elif self.front and top != "sweater":
            brush.oval(0, 0.178, 0.04, 0.022, tone(self.skin, 0.95))

    def _outer(self, rows: Profile) -> None:
        brush = self.brush
        if self.front and self.person.closure == "open":
            for edges in ((0.0, 0.29), (0.71, 1.0)):
                brush.cloth(strip(rows[1:], *edges), self.outer)
            return
        self._folds(rows, self.outer)
        if self.front:
            brush.stroke([(0, 0.18), (0, rows[-1][0] - 0.01)], 0.009, tone(self.outer, 0.6))
            for y in (0.27, 0.34, 0.41, 0.48):
                brush.oval(0.018, y, 0.007, 0.007, tone(self.outer, 0.5))
            for side in (-1, 1):
                lapel = [(side * 0.004, 0.235), (side * 0.062, 0.2), (side * 0.036, 0.16)]
                brush.shape(lapel, tone(self.outer, 0.8))

    def _arms(self) -> dict[int, Point]:
        """Draw both arms; the hands by the side of the image they are on, -1 and 1."""
        hands = {}
        for side in (-1, 1):
            shoulder = (side * (self.shoulder - 0.018), 0.222)
            if self.front and self.person.carried == "newspaper":
                elbow, wrist = (side * (self.shoulder + 0.03), 0.35), (side * 0.06, 0.37)
            else:
                swing = 0.014 * self.pose.swing * side
                elbow, wrist = (side * (self.shoulder + 0.024), 0.345), (side * (self.shoulder + 0.022), 0.465 + swing)
            self.arm(shoulder, elbow, wrist)
            hands[side] = _between(elbow, wrist, 1.15)
        return hands

    def _straps(self) -> None:
        if self.person.bag == "backpack":
            for side in (-1, 1):
                inner, outer = side * 0.052, side * (self.shoulder - 0.022)
                self.brush.stroke([(inner, 0.185), (side * 0.07, 0.28), (outer, 0.39)], 0.027, tone(self.bag, 0.8))
                self.brush.stroke([(inner, 0.185), (side * 0.07, 0.28), (outer, 0.39)], 0.019, self.bag)

    def _bags(self, hands: dict[int, Point]) -> None:
        bag, left = self.person.bag, self.left
        if bag == "shoulder bag":
            self.brush.stroke([(-left * 0.06, 0.19), (left * 0.11, 0.47)], 0.016, tone(self.bag, 0.75))
            self.box(left * 0.125, 0.45, 0.115, 0.12, self.bag)
            self.brush.stroke([(left * 0.075, 0.5), (left * 0.175, 0.5)], 0.01, tone(self.bag, 0.7))
        elif bag == "handbag":
            self.hand_bag(hands[left])
        elif bag == "backpack" and not self.front:
            self.brush.stroke([(-0.03, 0.2), (0, 0.185), (0.03, 0.2)], 0.012, _DARK)
            self.box(0, 0.2, 0.168, 0.25, self.bag)
            self.brush.profile([(0.34, -0.055, 0.055), (0.42, -0.06, 0.06)], tone(self.bag, 0.78))
            self.brush.stroke([(-0.065, 0.27), (0.065, 0.27)], 0.009, tone(self.bag, 0.65))
        if self.person.carried == "newspaper":
            if self.front:
                self.newspaper(0, 0.325)
        else:
            self.luggage(hands[-left], -left)

    def _hair_behind(self) -> None:
        if self.person.hair == "long":
            rows = [(0.05, -0.058, 0.058), (0.12, -0.078, 0.078), (0.25, -0.086, 0.086), (0.268, -0.07, 0.07)]
            self.brush.profile(rows, tone(self.hair, 0.85))
        if self.person.hair == "bun":
            self.brush.oval(0, -0.008, 0.036, 0.032, tone(self.hair, 0.85))

    def _front_head(self) -> None:
        brush, person = self.brush, self.person
        brush.oval(0, 0.078, 0.067, 0.079, self.hair)
        if person.hair == "long":
            for side in (-1, 1):
                brush.limb([(side * 0.057, 0.08), (side * 0.066, 0.235)], (0.03, 0.034), self.hair)
        brush.oval(0, 0.096, 0.052, 0.062, self.skin)
        if person.hair != "bald":
            brush.dome(0, 0.062, 0.052, 0.03, self.hair)
        for side in (-1, 1):
            brush.oval(side * 0.021, 0.094, 0.0075, 0.0085, _DARK)
        brush.stroke([(-0.014, 0.133), (0.014, 0.133)], 0.01, self.lips)
        if person.glasses is not None:
            _glasses(brush, (-0.024, 0.024), person.glasses)
        self.head_cover(0, 0)

    def _back_head(self) -> None:
        brush, hair = self.brush, self.person.hair
        brush.oval(0, 0.082, 0.066, 0.08, self.hair)
        brush.dome(0.012, 0.06, 0.035, 0.03, tone(self.hair, 1.2))
        if hair == "long":
            rows = [(0.08, -0.066, 0.066), (0.2, -0.08, 0.08), (0.27, -0.074, 0.074), (0.29, -0.05, 0.05)]
            brush.cloth(rows, self.hair)
        elif hair == "ponytail":
            brush.limb([(0, 0.08), (0.006, 0.16), (0, 0.27)], (0.044, 0.056, 0.03), self.hair)
            brush.stroke([(-0.02, 0.085), (0.02, 0.085)], 0.012, _DARK)
        elif hair == "bun":
            brush.oval(0, 0.03, 0.042, 0.036, tone(self.hair, 0.7))
            brush.oval(0, 0.03, 0.037, 0.031, self.hair)
        self.head_cover(0, 0)


class _SideFigure(_Figure):
    """A person seen from the side, who walks towards growing x."""

    def __init__(self, brush: Brush, person: Person, pose: Pose):
        super().__init__(brush, person, pose)
        self.wide = person.build * (1.06 if person.gender == "man" else 1.0)

    def draw(self) -> None:
        near_left = self.pose.view == "left"
        reading = self.person.carried == "newspaper"
        self._arm(-self.pose.swing, reading)
        self._leg(-self.pose.stride, shade=True)
        self._leg(self.pose.stride, shade=False)
        self._skirt()
        self.brush.limb([(-0.004, 0.13), (-0.008, 0.185)], (0.054, 0.062), tone(self.skin, 0.92))
        self._clothes()
        if self.person.bag == "backpack":
            self._backpack()
        if self.person.bag == "shoulder bag":
            self.brush.stroke([(0, 0.19), (-0.02 if near_left else 0.03, 0.46)], 0.016, tone(self.bag, 0.75))
        self._head()
        holding = (self.person.bag == "handbag") if near_left else (self.person.carried not in (None, "newspaper"))
        hand = self._arm(0.15 if holding else self.pose.swing, reading)
        if near_left and self.person.bag == "shoulder bag":
            self.box(-0.028, 0.445, 0.13, 0.125, self.bag)
            self.brush.stroke([(-0.085, 0.495), (0.03, 0.495)], 0.01, tone(self.bag, 0.7))
        elif near_left and self.person.bag == "handbag":
            self.hand_bag(hand)
        if reading:
            self.newspaper(0.125, 0.3)
        elif not near_left:
            self._carry(hand)

    def _carry(self, hand: Point) -> None:
        if self.person.carried == "suitcase":
            self.luggage((-0.1, 0.47), -1)
        else:
            self.luggage(hand, -1)

    def _leg(self, stride: float, shade: bool) -> None:
        reach = 0.1 * stride
        back = 0.018 if stride < 0 else 0.0
        ankle = (reach, 0.935 - abs(back))
        toes = (ankle[0] + 0.058, 0.962 - back / 2)
        self.brush.limb([(ankle[0], 0.955 - back), toes], (0.05, 0.036), tone(self.shoes, 0.85 if shade else 1))
        self.leg((0.0, 0.51), (reach * 0.5 + 0.018, 0.725), ankle)
        self.brush.limb([(ankle[0], 0.955 - back), toes], (0.05, 0.036), tone(self.shoes, 0.85 if shade else 1))

    def _skirt(self) -> None:
        flare = {"skirt": (0.68, 0.1), "long skirt": (0.88, 0.125)}.get(self.person.bottom)
        if flare:
            hem, half = flare
            rows = [(0.42, -0.058, 0.056), (0.52, -0.075, 0.066), (hem, -half, half * 0.95)]
            self.brush.cloth(rows, self.bottom)
            self.brush.profile(strip(rows[1:], 0.5, 0.55), tone(self.bottom, 0.82))
        elif self.person.bottom is not None:
            self.brush.profile([(0.45, -0.066, 0.06), (0.54, -0.056, 0.052)], self.bottom)

    def _torso(self, hem: float, back: float, front: float) -> Profile:
        wide = self.wide
        return [
            (0.176, -0.038, 0.03),
            (0.2, -0.06 * wide, 0.05 * wide),
            (0.27, -0.07 * wide, 0.074 * wide),
            (0.37, -0.058 * wide, 0.064 * wide),
            (0.5, -0.07 * wide, 0.064 * wide),
            *([(hem, -back, front)] if hem > 0.5 else []),
        ]

    def _clothes(self) -> None:
        person, brush = self.person, self.brush
        if person.top is not None:
            rows = self._torso(0.7, 0.105, 0.1) if person.top == "dress" else self._torso(0.5, 0.07, 0.064)
            brush.cloth(rows, self.top)
            self.decorate(rows)
            if person.top == "hoodie":
                brush.oval(-0.045, 0.188, 0.045, 0.034, tone(self.top, 0.8))
        if person.outer is None:
            return
        hem = (0.7, 0.1, 0.092) if person.outer == "coat" else (0.52, 0.078, 0.07)
        rows = [(y, left - 0.004, right + 0.004) for y, left, right in self._torso(*hem)]
        brush.cloth(strip(rows, 0, 0.62) if person.closure == "open" else rows, self.outer)
        if person.outer == "coat":
            brush.profile(strip(rows[3:], 0.25, 0.29), tone(self.outer, 0.8))

    def _backpack(self) -> None:
        rows = [(0.2, -0.13, -0.05), (0.225, -0.165, -0.045), (0.43, -0.175, -0.045), (0.45, -0.155, -0.05)]
        self.brush.cloth(rows, self.bag)
        self.brush.profile([(0.33, -0.172, -0.13), (0.42, -0.175, -0.13)], tone(self.bag, 0.75))
        self.brush.stroke([(-0.055, 0.2), (0.0, 0.185), (0.035, 0.25), (0.01, 0.34), (-0.05, 0.4)], 0.02, self.bag)

    def _arm(self, swing: float, reading: bool) -> Point:
        """Draw an arm; where its hand is."""
        shoulder, angle = (-0.005, 0.225), 0.5 * swing
        elbow = (shoulder[0] + 0.135 * sin(angle), shoulder[1] + 0.135 * cos(angle))
        if reading:
            elbow, wrist = (0.0, 0.355), (0.1, 0.36)
        else:
            wrist = (elbow[0] + 0.12 * sin(angle + 0.3), elbow[1] + 0.12 * cos(angle + 0.3))
        self.arm(shoulder, elbow, wrist)
        return _between(elbow, wrist, 1.15)

    def _head(self) -> None:
        brush, hair = self.brush, self.person.hair
        if hair == "long":
            rows = [(0.05, -0.07, 0.0), (0.16, -0.086, 0.0), (0.27, -0.09, -0.02), (0.29, -0.075, -0.04)]
            brush.cloth(rows, self.hair)
        elif hair == "ponytail":
            brush.limb([(-0.06, 0.06), (-0.1, 0.12), (-0.096, 0.24)], (0.034, 0.05, 0.024), self.hair)
        elif hair == "bun":
            brush.oval(-0.068, 0.026, 0.038, 0.036, self.hair)
        brush.oval(-0.006, 0.078, 0.069, 0.079, self.hair)
        brush.shape([(0.05, 0.08), (0.079, 0.108), (0.05, 0.118)], self.skin)
        brush.oval(0.02, 0.099, 0.05, 0.059, self.skin)
        if hair != "bald":
            brush.dome(0.014, 0.06, 0.05, 0.03, self.hair)
            brush.oval(-0.022, 0.095, 0.02, 0.034, self.hair)
        brush.oval(-0.014, 0.104, 0.011, 0.015, tone(self.skin, 0.86))
        brush.oval(0.044, 0.092, 0.0075, 0.0085, _DARK)
        brush.stroke([(0.042, 0.133), (0.06, 0.132)], 0.01, self.lips)
        if self.person.glasses is not None:
            _glasses(brush, (0.044,), self.person.glasses)
            brush.stroke([(-0.01, 0.09), (0.03, 0.092)], 0.009, _DARK)
        self.head_cover(-0.002, 0.07)


def _glasses(brush: Brush, eyes: Sequence[float], kind: str) -> None:
    for x in eyes:
        if kind == "sunglasses":
            brush.oval(x, 0.094, 0.024, 0.02, (18, 18, 22))
        else:
            brush.oval(x, 0.094, 0.022, 0.02, (206, 222, 232))
            brush.oval(x, 0.094, 0.007, 0.008, _DARK)
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


def _between(start: Point, end: Point, part: float) -> Point:
    """The point that lies the given part of the way from `start` to `end`, beyond `end` when over 1."""
    return start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])
