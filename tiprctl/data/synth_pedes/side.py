"""Draws a person from a side."""

from __future__ import annotations

from math import cos, sin

from tiprctl.data.synth_pedes.brush import Brush, Point, Profile, strip, tone
from tiprctl.data.synth_pedes.figure import DARK, Figure, Pose, between, glasses
from tiprctl.data.synth_pedes.people import Person


class SideFigure(Figure):
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
        return between(elbow, wrist, 1.15)

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
        brush.oval(0.044, 0.092, 0.0075, 0.0085, DARK)
        brush.stroke([(0.042, 0.133), (0.06, 0.132)], 0.01, self.lips)
        if self.person.glasses is not None:
            glasses(brush, (0.044,), self.person.glasses)
            brush.stroke([(-0.01, 0.09), (0.03, 0.092)], 0.009, DARK)
        self.head_cover(-0.002, 0.07)
