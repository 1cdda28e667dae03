"""Draws a person from the front or the back."""

from __future__ import annotations

from tiprctl.data.synth_pedes.brush import Brush, Point, Profile, strip, tone
from tiprctl.data.synth_pedes.figure import DARK, Figure, Pose, between, glasses
from tiprctl.data.synth_pedes.people import RGB, Person


class FacingFigure(Figure):
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
            hands[side] = between(elbow, wrist, 1.15)
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
            self.brush.stroke([(-0.03, 0.2), (0, 0.185), (0.03, 0.2)], 0.012, DARK)
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
            brush.oval(side * 0.021, 0.094, 0.0075, 0.0085, DARK)
        brush.stroke([(-0.014, 0.133), (0.014, 0.133)], 0.01, self.lips)
        if person.glasses is not None:
            glasses(brush, (-0.024, 0.024), person.glasses)
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
            brush.stroke([(-0.02, 0.085), (0.02, 0.085)], 0.012, DARK)
        elif hair == "bun":
            brush.oval(0, 0.03, 0.042, 0.036, tone(self.hair, 0.7))
            brush.oval(0, 0.03, 0.037, 0.031, self.hair)
        self.head_cover(0, 0)
