"""What stands around a person: backgrounds with clutter, and things that cover the crop's edge."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from PIL import ImageDraw

from tiprctl.data.synth_pedes.brush import tone
from tiprctl.data.synth_pedes.people import COLOURS, RGB

Size = tuple[int, int]


def draw_background(draw: ImageDraw.ImageDraw, size: Size, horizon: float, rng: Random) -> None:
    """Fill the image with a street, a wall, a shop, a lawn or a corridor; the ground begins at `horizon` (0 to 1)."""
    rng.choice(_PLACES)(draw, size, int(horizon * size[1]), rng)


def draw_occluder(draw: ImageDraw.ImageDraw, size: Size, rng: Random) -> None:
    """Put a post or a hedge before a lateral border of the image; a person in its middle stays in sight."""
    width, height = size
    reach = int(width * rng.uniform(0.08, 0.17))
    left = 0 if rng.random() < 0.5 else width - reach
    if rng.random() < 0.5:
        colour = _paint(rng)
        draw.rectangle((left, 0, left + reach, height), fill=colour)
        draw.rectangle((left + reach * 2 // 3, 0, left + reach, height), fill=tone(colour, 0.75))
        return
    top = int(height * rng.uniform(0.5, 0.8))
    for _ in range(14):
        _blot(draw, left + rng.random() * reach, rng.uniform(top, height), reach * 0.6, _leaf(rng))


def hide_feet(draw: ImageDraw.ImageDraw, size: Size, top: int, rng: Random) -> None:
    """Put a low wall, a planted tub or a car's bonnet before everything below the row `top`."""
    width, height = size
    kind, colour = rng.choice(("wall", "tub", "car")), _paint(rng)
    if kind == "car":
        draw.ellipse((-width * 0.3, top, width * 1.3, top + (height - top) * 3), fill=colour)
        draw.line((0, top + 9, width, top + 7), fill=tone(colour, 1.4), width=3)
        return
    draw.rectangle((0, top, width, height), fill=colour)
    draw.rectangle((0, top, width, top + 5), fill=tone(colour, 1.25))
    if kind == "tub":
        for x in range(0, width, 9):
            _blot(draw, x, top + rng.randint(-3, 5), 9, _leaf(rng))


def _street(draw: ImageDraw.ImageDraw, size: Size, horizon: int, rng: Random) -> None:
    width, _ = size
    draw.rectangle((0, 0, width, horizon), fill=_sky(rng))
    x = -rng.randint(0, width // 2)
    while x < width:
        house = rng.randint(width // 4, width // 2)
        _house(draw, (x, int(horizon * rng.uniform(0.0, 0.5)), x + house, horizon), rng)
        x += house
    _pavement(draw, size, horizon, rng)
    if rng.random() < 0.6:
        _car(draw, rng.uniform(-0.4, 0.9) * width, horizon, width * rng.uniform(0.6, 0.9), rng)
    if rng.random() < 0.4:
        x = rng.randint(0, width)
        draw.rectangle((x, 0, x + 5, horizon + 8), fill=_grey(rng, 50, 120))


def _wall(draw: ImageDraw.ImageDraw, size: Size, horizon: int, rng: Random) -> None:
    width, _ = size
    colour = _paint(rng, pale=0.5)
    draw.rectangle((0, 0, width, horizon), fill=colour)
    course = rng.randint(12, 22)
    for row, y in enumerate(range(0, horizon, course)):
        draw.line((0, y, width, y), fill=tone(colour, 0.88), width=2)
        for x in range((row % 2) * course, width, 2 * course):
            draw.line((x, y, x, y + course), fill=tone(colour, 0.88), width=2)
    for _ in range(rng.randint(0, 3)):
        _poster(draw, size, horizon, rng)
    _pavement(draw, size, horizon, rng)


def _shop(draw: ImageDraw.ImageDraw, size: Size, horizon: int, rng: Random) -> None:
    width, height = size
    frame = _paint(rng)
    draw.rectangle((0, 0, width, horizon), fill=frame)
    draw.rectangle((0, 0, width, height * 0.1), fill=_paint(rng))
    pane = rng.randint(width // 3, width // 2)
    for x in range(-rng.randint(0, pane), width, pane):
        glass = tone(_sky(rng), rng.uniform(0.55, 0.95))
        draw.rectangle((x + 4, height * 0.14, x + pane - 4, horizon - 10), fill=glass)
        for _ in range(3):
            shelf = rng.uniform(0.2, 0.6) * height
            left = x + rng.uniform(0.1, 0.6) * pane
            draw.rectangle((left, shelf, left + pane * 0.3, shelf + height * rng.uniform(0.03, 0.1)), fill=_paint(rng))
    _pavement(draw, size, horizon, rng)


def _lawn(draw: ImageDraw.ImageDraw, size: Size, horizon: int, rng: Random) -> None:
    width, height = size
    draw.rectangle((0, 0, width, horizon), fill=_sky(rng))
    for _ in range(rng.randint(3, 6)):
        x, crown, leaf = rng.uniform(0, width), width * rng.uniform(0.15, 0.35), _leaf(rng)
        base = horizon - rng.uniform(0.0, 0.5) * horizon
        draw.rectangle((x - 4, base, x + 4, horizon), fill=(92, 70, 50))
        for _ in range(4):
            spot = (x + rng.uniform(-0.5, 0.5) * crown, base - rng.uniform(-0.3, 0.5) * crown)
            _blot(draw, *spot, crown * 0.7, tone(leaf, rng.uniform(0.85, 1.15)))
    grass = tone(_leaf(rng), 1.15)
    draw.rectangle((0, horizon, width, height), fill=grass)
    for _ in range(40):
        x, y = rng.uniform(0, width), rng.uniform(horizon, height)
        draw.line((x, y, x + rng.uniform(-3, 3), y - 6), fill=tone(grass, rng.uniform(0.75, 1.2)), width=2)
    for _ in range(rng.randint(0, 6)):
        _blot(draw, rng.uniform(0, width), rng.uniform(horizon, height), 3, _paint(rng))


def _corridor(draw: ImageDraw.ImageDraw, size: Size, horizon: int, rng: Random) -> None:
    width, height = size
    light, floor = _paint(rng, pale=0.75), _grey(rng, 110, 200)
    draw.rectangle((0, 0, width, height), fill=light)
    far = (width * rng.uniform(0.2, 0.4), height * 0.2, width * rng.uniform(0.6, 0.8), horizon)
    draw.rectangle(far, fill=tone(light, 0.85))
    draw.polygon([(0, 0), far[:2], (far[0], far[3]), (0, height)], fill=tone(light, 0.93))
    draw.polygon([(0, height), (far[0], far[3]), far[2:], (width, height)], fill=floor)
    for y in range(horizon, height, 18):
        draw.line((0, y, width, y), fill=tone(floor, 0.92), width=2)
    for _ in range(rng.randint(1, 3)):
        x = rng.uniform(-0.1, 0.9) * width
        draw.rectangle((x, height * 0.25, x + width * 0.2, horizon + 12), fill=_paint(rng))
    draw.rectangle((far[0], height * 0.02, far[2], height * 0.05), fill=(250, 250, 240))


_PLACES: tuple[Callable[[ImageDraw.ImageDraw, Size, int, Random], None], ...] = (
    _street,
    _wall,
    _shop,
    _lawn,
    _corridor,
)


def _house(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], rng: Random) -> None:
    left, top, right, bottom = box
    colour = _paint(rng, pale=0.4)
    draw.rectangle(box, fill=colour)
    pane = tone(_sky(rng), 0.7)
    for y in range(top + 10, bottom - 24, 34):
        for x in range(left + 8, right - 12, 26):
            draw.rectangle((x, y, x + 12, y + 18), fill=pane)


def _car(draw: ImageDraw.ImageDraw, x: float, ground: int, length: float, rng: Random) -> None:
    colour, tall = _paint(rng), length * 0.28
    draw.rounded_rectangle((x + length * 0.2, ground - tall, x + length * 0.8, ground), 8, fill=tone(colour, 0.9))
    draw.rectangle((x + length * 0.27, ground - tall * 0.85, x + length * 0.73, ground - tall * 0.5), fill=(70, 84, 98))
    draw.rounded_rectangle((x, ground - tall * 0.5, x + length, ground + 4), 6, fill=colour)
    for wheel in (0.22, 0.78):
        _blot(draw, x + wheel * length, ground + 4, tall * 0.22, (34, 34, 36))


def _poster(draw: ImageDraw.ImageDraw, size: Size, horizon: int, rng: Random) -> None:
    x, y = rng.uniform(-0.1, 0.9) * size[0], rng.uniform(0.05, 0.6) * horizon
    colour = _paint(rng)
    right, bottom = x + size[0] * rng.uniform(0.12, 0.3), y + size[1] * rng.uniform(0.08, 0.2)
    draw.rectangle((x, y, right, bottom), fill=colour)
    draw.rectangle((x + 4, y + 4, right - 4, y + (bottom - y) * 0.45), fill=tone(colour, 1.3))


def _pavement(draw: ImageDraw.ImageDraw, size: Size, horizon: int, rng: Random) -> None:
    width, height = size
    colour = _grey(rng, 105, 205)
    draw.rectangle((0, horizon, width, height), fill=colour)
    middle, gap = rng.uniform(0, width), rng.randint(24, 60)
    for x in range(-width, 2 * width, gap):
        draw.line((middle + (x - middle) * 0.5, horizon, x, height), fill=tone(colour, 0.92), width=2)
    draw.line((0, horizon + 3, width, horizon + 3), fill=tone(colour, 0.8), width=5)


def _blot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: RGB) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _paint(rng: Random, pale: float = 0.0) -> RGB:
    """Any garment colour, washed out by `pale` (0 to 1): so a colour somewhere in the image says little."""
    base, grey = rng.choice(list(COLOURS.values())), rng.randint(150, 225)
    pale = min(1.0, pale + rng.uniform(0.05, 0.35))
    red, green, blue = (int(channel + pale * (grey - channel)) for channel in base)
    return red, green, blue


def _sky(rng: Random) -> RGB:
    light = rng.randint(-25, 20)
    return rng.randint(165, 215) + light, rng.randint(190, 220) + light, rng.randint(205, 235) + light


def _leaf(rng: Random) -> RGB:
    return rng.randint(55, 115), rng.randint(105, 155), rng.randint(45, 80)


def _grey(rng: Random, low: int, high: int) -> RGB:
    value = rng.randint(low, high)
    return value + rng.randint(-8, 8), value + rng.randint(-6, 6), value + rng.randint(-10, 8)
