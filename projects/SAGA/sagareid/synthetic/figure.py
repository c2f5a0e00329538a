"""Draws a person onto a canvas, one function per part of the body, from back to front.

Lengths are multiples of `_Body.u`: one pixel of a 96x48 picture for a person of average height.
"""

from __future__ import annotations

import enum
import math

import numpy as np
from PIL import Image, ImageDraw

from .canvas import Canvas, Point, darker
from .person import BUILDS, COLOURS, HAIR_COLOURS, HEIGHTS, SKINS, Colour, Person, rgb, shaded
from .shot import Shot


class Part(enum.IntEnum):
    """What the person shows at a pixel."""

    FACE = 1
    ARMS = 2
    LEGS = 3
    HAIR = 4
    HEADWEAR = 5
    SCARF = 6
    UPPER = 7
    SLEEVES = 8
    LOWER = 9
    SHOES = 10
    BAG = 11


# The parts by name, in the order of their numbers.
PARTS = tuple(part.name.lower() for part in Part)
# Attribute place -> the parts that show it.
PLACES: dict[str, tuple[str, ...]] = {
    "hair": ("hair",),
    "headwear": ("headwear",),
    "scarf": ("scarf",),
    "upper": ("upper", "sleeves"),
    "lower": ("lower",),
    "shoes": ("shoes",),
    "bag": ("bag",),
    "skin": ("face", "arms", "legs"),
}


class _Body:
    """Where the parts of a person are in a shot, and in which colours they are drawn."""

    def __init__(self, person: Person, shot: Shot, canvas: Canvas):
        self.person, self.shot = person, shot
        self.side, self.back, self.facing = shot.view == "side", shot.view == "back", shot.facing
        # A person carries the bag on the same side of the body, so it changes sides with the view.
        self.hand = -self.facing if self.back else self.facing

        u = self.u = 0.985 * HEIGHTS[person.height] * shot.scale
        self.wide = BUILDS[person.build] * u
        self.x, self.feet = 24 + shot.dx, 91.5 + shot.dy + 1.5 * (HEIGHTS[person.height] - 1) * 40
        self.crotch, self.waist = self.feet - 38 * u, self.feet - 44 * u
        self.shoulder, self.chin = self.feet - 66 * u, self.feet - 69.5 * u
        self.head, self.head_rx, self.head_ry = self.feet - 75.3 * u, (5.3 if self.side else 5.0) * u, 6.4 * u
        halves = (5.4, 5.2, 5.6) if self.side else (9.2, 7.0, 7.8)
        self.half_shoulder, self.half_waist, self.half_hip = (half * self.wide for half in halves)

        self.skin = SKINS[person.skin]
        self.bald = person.hair_style == "bald"
        # Without hair or bag these colours are not used.
        self.hair = self.skin if self.bald else shaded(person, "hair", HAIR_COLOURS[person.hair_colour])
        self.lower = shaded(person, "lower", COLOURS[person.lower_colour])
        self.shoes = shaded(person, "shoes", COLOURS[person.shoes_colour])
        self.bag = shaded(person, "bag", COLOURS.get(person.bag_colour, (0, 0, 0)))
        self.upper_colour = shaded(person, "upper", COLOURS[person.upper_colour])
        self.upper = _upper_fill(person, canvas, change=self.shoulder + 11 * u)
        # A shade of its own keeps a plain sleeve apart from the body behind it.
        self.sleeves = darker(self.upper_colour, 0.86) if person.upper_pattern == "plain" else self.upper
        self.hem = {
            "coat": self.feet - 25 * u,
            "vest": self.crotch + 0.5 * u,
            "jacket": self.crotch + 1 * u,
        }.get(person.upper, self.crotch + 2.5 * u)


def _upper_fill(person: Person, canvas: Canvas, change: float) -> Colour | Image.Image:
    """The upper garment's colour, or a picture with its pattern; `change`: the height where two-tone changes."""
    first = shaded(person, "upper", COLOURS[person.upper_colour])
    if person.upper_pattern == "plain":
        return first
    second = shaded(person, "upper2", COLOURS[person.upper_colour2])
    (width, height), (kx, ky) = canvas.image.size, canvas.scale
    image = Image.new("RGB", (width, height), first)
    ink = ImageDraw.Draw(image)
    if person.upper_pattern == "striped":
        for y in np.arange(0.0, height, 6 * ky):
            ink.rectangle([0, y, width, y + 2.8 * ky], fill=second)
    elif person.upper_pattern == "two-tone":
        ink.rectangle([0, change * ky, width, height], fill=second)
    elif person.upper_pattern == "checked":
        for line, y in enumerate(np.arange(0.0, height, 4 * ky)):
            for x in np.arange((line % 2) * 4 * kx, width, 8 * kx):
                ink.rectangle([x, y, x + 4 * kx - 1, y + 4 * ky - 1], fill=second)
    else:
        for line, y in enumerate(np.arange(0.0, height, 4.5 * ky)):
            for x in np.arange((line % 2) * 2.75 * kx, width, 5.5 * kx):
                ink.ellipse([x - 1.4 * kx, y - 1.4 * ky, x + 1.4 * kx, y + 1.4 * ky], fill=second)
    return image


def draw_person(canvas: Canvas, person: Person, shot: Shot) -> None:
    """Draw the person onto the canvas and number the pixels by `Part`."""
    body = _Body(person, shot, canvas)
    if person.bag == "suitcase":
        _draw_suitcase(canvas, body)
    _draw_legs(canvas, body)
    _draw_hips(canvas, body)
    if person.hair_style == "long" and not body.back:
        _draw_hair_behind(canvas, body)
    if person.bag == "backpack" and body.side:
        _draw_backpack_behind(canvas, body)
    if body.side:  # the far arm
        _draw_arm(canvas, body, body.x - 0.5 * body.u, -shot.arm, 0)
    _draw_torso(canvas, body)
    wrists = []
    if not body.side:
        for outwards in (-1, 1):
            shoulder = body.x + outwards * (body.half_shoulder - 0.4 * body.u)
            wrists.append(_draw_arm(canvas, body, shoulder, outwards * 0.25 * shot.arm, outwards))
    if shot.view == "front":
        _draw_front_of_upper(canvas, body)
    if person.upper == "hoodie":
        _draw_hood(canvas, body)
    if body.side:  # the near arm
        wrists.append(_draw_arm(canvas, body, body.x + 0.3 * body.u, shot.arm, 0))
    _draw_bag(canvas, body, wrists[0] if body.side or body.hand < 0 else wrists[1])
    _draw_head(canvas, body)
    if person.scarf_colour != "none":
        _draw_scarf(canvas, body)


# ---------------------------------------------------------------------------------------------------- below the waist
def _draw_legs(canvas: Canvas, body: _Body) -> None:
    u, x, feet, wide, swing = body.u, body.x, body.feet, body.wide, body.shot.swing
    if body.side:
        ankles = [(x - 8 * u * swing, feet - 3 * u), (x + 8 * u * swing, feet - 3 * u)]
        hips = [(x, body.crotch)] * 2
        lift = (0.0, 0.0)
    else:
        ankles = [(x - 4.2 * wide, feet - 3 * u), (x + 4.2 * wide, feet - 3 * u)]
        hips = [(x - 3.7 * wide, body.crotch), (x + 3.7 * wide, body.crotch)]
        lift = (2.4 * u * max(swing, 0), 2.4 * u * max(-swing, 0))
    for number, (hip, (ankle_x, ankle_y), up) in enumerate(zip(hips, ankles, lift)):
        ankle = (ankle_x, ankle_y - up)
        _draw_leg(canvas, body, hip, ankle, shade=0.82 if body.side and number == 0 else 1.0)
        _draw_shoe(canvas, body, ankle)


def _draw_leg(canvas: Canvas, body: _Body, hip: Point, ankle: Point, shade: float) -> None:
    u, wide = body.u, body.wide
    bend = 1.5 * body.facing * u if body.side else 0
    knee = ((hip[0] + ankle[0]) / 2 + bend, (hip[1] + ankle[1]) / 2)
    bare = body.person.lower in ("shorts", "skirt")
    canvas.limb(
        [hip, knee, ankle],
        (6.6 * wide, (4.4 if bare else 5.4) * wide, (3.2 if bare else 4.6) * wide),
        darker(body.skin if bare else body.lower, shade),
        Part.LEGS if bare else Part.LOWER,
    )
    if body.person.lower == "shorts":
        canvas.limb(
            [(hip[0], hip[1] - 3 * u), (knee[0], knee[1] - 1 * u)],
            (7.2 * wide, 7.0 * wide),
            darker(body.lower, shade),
            Part.LOWER,
        )


def _draw_shoe(canvas: Canvas, body: _Body, ankle: Point) -> None:
    u, (x, y), d = body.u, ankle, body.facing
    toe = 5.2 * d * u if body.side else 0
    sole = y + 3.4 * u
    if body.person.shoes == "boots":
        canvas.limb([(x, y - 8 * u), (x, y + 1 * u)], (5.0 * body.wide, 5.2 * body.wide), body.shoes, Part.SHOES)
    if body.side:
        outline = [
            (x - 2.6 * d * u, y - 0.5 * u),
            (x + 2.0 * d * u, y - 0.5 * u),
            (x + toe, sole - 1.4 * u),
            (x + toe, sole),
            (x - 2.8 * d * u, sole),
        ]
        canvas.polygon(outline, body.shoes, Part.SHOES)
    else:
        canvas.ellipse(x + (x - body.x) * 0.12, y + 1.4 * u, 3.3 * u, 2.4 * u, body.shoes, Part.SHOES)
    if body.person.shoes == "trainers":
        start, end = (x - 2.8 * d * u, x + toe) if body.side else (x - 3.0 * u, x + 3.0 * u)
        canvas.limb([(start, sole - 0.2 * u), (end, sole - 0.2 * u)], 1.5 * u, (240, 240, 240), Part.SHOES)


def _draw_hips(canvas: Canvas, body: _Body) -> None:
    u, half = body.u, body.half_hip
    canvas.trapezium(body.x, body.waist, half, body.crotch + 2 * u, half, body.lower, Part.LOWER)
    if body.person.lower in ("skirt", "long skirt"):
        hem, flare = (body.feet - 21 * u, 1.35) if body.person.lower == "skirt" else (body.feet - 7 * u, 1.5)
        half_hem = half * flare + (3.5 * u * abs(body.shot.swing) if body.side else 0)
        canvas.trapezium(body.x, body.waist, half, hem, half_hem, body.lower, Part.LOWER)


# ---------------------------------------------------------------------------------------------------- torso and arms
def _draw_arm(canvas: Canvas, body: _Body, x: float, swing: float, outwards: int) -> Point:
    """Draw an arm that hangs from `x`; returns its wrist."""
    u, shoulder = body.u, body.shoulder
    top = (x, shoulder + 2.2 * u)
    elbow = (x + outwards * 2.2 * u + swing * 3.5 * u, shoulder + 12 * u)
    wrist = (elbow[0] + outwards * 0.6 * u + swing * 4.5 * u, shoulder + 23 * u)
    canvas.limb([top, elbow, wrist], (4.2 * u, 3.4 * u, 2.8 * u), body.skin, Part.ARMS)
    canvas.ellipse(wrist[0], wrist[1] + 1.2 * u, 1.8 * u, 1.9 * u, body.skin, Part.ARMS)
    covered = {"t-shirt": [top, elbow], "vest": []}.get(body.person.upper, [top, elbow, wrist])
    if covered:
        canvas.limb(covered, (4.9 * u, 4.6 * u, 3.9 * u)[: len(covered)], body.sleeves, Part.SLEEVES)
    return wrist


def _draw_torso(canvas: Canvas, body: _Body) -> None:
    u, x, shoulder, waist = body.u, body.x, body.shoulder, body.waist - 2 * body.u
    neck, half_waist = 2.6 * u, body.half_waist * 1.02
    half_hem = body.half_hip * (1.22 if body.person.upper == "coat" else 1.06)
    canvas.trapezium(x, body.chin - 1 * u, neck, shoulder + 1 * u, neck, body.skin, Part.FACE)
    outline = [
        (x - neck, shoulder - 0.8 * u),
        (x + neck, shoulder - 0.8 * u),
        (x + body.half_shoulder, shoulder + 1.6 * u),
        (x + half_waist, waist),
        (x + half_hem, body.hem),
        (x - half_hem, body.hem),
        (x - half_waist, waist),
        (x - body.half_shoulder, shoulder + 1.6 * u),
    ]
    canvas.polygon(outline, body.upper, Part.UPPER)


def _draw_front_of_upper(canvas: Canvas, body: _Body) -> None:
    """What tells the kinds of upper garment apart from the front: lapels, buttons, a pocket, a neckline."""
    u, x, shoulder, kind = body.u, body.x, body.shoulder, body.person.upper
    if sum(body.upper_colour) < 380:  # a detail has to stand out from the garment
        detail = rgb(min(255, v * 0.5 + 128) for v in body.upper_colour)
    else:
        detail = darker(body.upper_colour, 0.55)
    if kind in ("jacket", "coat"):
        lapels = [(x - 2.6 * u, shoulder - 0.8 * u), (x + 2.6 * u, shoulder - 0.8 * u), (x, shoulder + 10 * u)]
        canvas.polygon(lapels, detail, Part.UPPER)
        canvas.limb([(x, shoulder + 8 * u), (x, body.hem)], 1.0 * u, detail, Part.UPPER)
    elif kind == "shirt":
        for y in np.arange(shoulder + 4 * u, body.hem - 2 * u, 5 * u):
            canvas.ellipse(x, y, 0.8 * u, 0.8 * u, detail, Part.UPPER)
    elif kind == "hoodie":
        pocket = darker(body.upper_colour, 0.7)
        canvas.trapezium(x, body.waist - 1 * u, 5 * u, body.crotch, 6.5 * u, pocket, Part.UPPER)
    elif kind == "vest":
        neckline = [(x - 3 * u, shoulder - 1 * u), (x + 3 * u, shoulder - 1 * u), (x, shoulder + 6 * u)]
        canvas.polygon(neckline, body.skin, Part.FACE)


def _draw_hood(canvas: Canvas, body: _Body) -> None:
    u = body.u
    canvas.ellipse(
        body.x - body.facing * 3.5 * u if body.side else body.x,
        body.shoulder + (2.0 if body.back else 0) * u,
        (4.5 if body.side else 7.0) * u,
        (4.6 if body.back else 2.6) * u,
        darker(body.upper_colour, 0.8),
        Part.UPPER,
    )


def _draw_scarf(canvas: Canvas, body: _Body) -> None:
    u, x, chin, person = body.u, body.x, body.chin, body.person
    colour = shaded(person, "scarf", COLOURS[person.scarf_colour])
    canvas.ellipse(x, chin + 2.4 * u, (4.6 if body.side else 6.0) * u, 3.2 * u, colour, Part.SCARF)
    if not body.back:
        end = x + body.facing * 2.4 * u
        canvas.trapezium(end, chin + 2 * u, 2 * u, body.shoulder + 12 * u, 2.2 * u, colour, Part.SCARF)
    if person.hair_style == "long" and body.back:  # falls over the scarf
        canvas.trapezium(x, body.head, 5 * u, body.shoulder, 5.4 * u, body.hair, Part.HAIR)


# ---------------------------------------------------------------------------------------------------- bags
def _draw_suitcase(canvas: Canvas, body: _Body) -> None:
    u, feet, hand = body.u, body.feet, body.hand
    x = body.x + hand * (13 if body.side else 14.5) * u
    canvas.limb([(x - hand * 2 * u, body.crotch + 2 * u), (x, feet - 20 * u)], 1.2 * u, (60, 60, 64), Part.BAG)
    canvas.trapezium(x, feet - 20 * u, 4.5 * u, feet, 4.5 * u, body.bag, Part.BAG)
    canvas.limb([(x - 4.5 * u, feet - 10 * u), (x + 4.5 * u, feet - 10 * u)], 1.0 * u, darker(body.bag), Part.BAG)


def _draw_backpack_behind(canvas: Canvas, body: _Body) -> None:
    """A backpack seen from the side: the arms and the torso cover its edge."""
    u = body.u
    x = body.x - body.facing * (body.half_shoulder + 3.2 * u)
    canvas.trapezium(x, body.shoulder + 1 * u, 4.4 * u, body.waist, 4.4 * u, body.bag, Part.BAG)


def _draw_bag(canvas: Canvas, body: _Body, wrist: Point) -> None:
    """The bag, or what of it is in front of the body; `wrist` is the one of the hand that carries."""
    if body.person.bag == "backpack":
        _draw_backpack(canvas, body)
    elif body.person.bag == "shoulder bag":
        _draw_shoulder_bag(canvas, body)
    elif body.person.bag == "handbag":
        u = body.u
        x, y = wrist[0] + (0 if body.side else body.hand * 1.0 * u), wrist[1] + 5 * u
        canvas.limb([(x - 3 * u, y), (x, y - 4.5 * u), (x + 3 * u, y)], 1.1 * u, body.bag, Part.BAG)
        canvas.trapezium(x, y, 4.2 * u, y + 9 * u, 5 * u, body.bag, Part.BAG)


def _draw_backpack(canvas: Canvas, body: _Body) -> None:
    u, x, shoulder, d = body.u, body.x, body.shoulder, body.facing
    if body.side:
        strap = [(x - d * 2 * u, shoulder), (x + d * 1.5 * u, shoulder + 6 * u), (x - d * 3 * u, shoulder + 14 * u)]
        canvas.limb(strap, 2.0 * u, body.bag, Part.BAG)
    elif body.back:
        canvas.trapezium(x, shoulder + 1.5 * u, 7 * u, body.waist, 7.6 * u, body.bag, Part.BAG)
        pocket = [(x - 5 * u, shoulder + 13 * u), (x + 5 * u, shoulder + 13 * u)]
        canvas.limb(pocket, 1.2 * u, darker(body.bag), Part.BAG)
    else:
        for s in (-1, 1):
            strap = [(x + s * 4.5 * u, shoulder - 0.5 * u), (x + s * 6.2 * u, shoulder + 15 * u)]
            canvas.limb(strap, (2.6 * u, 2.4 * u), body.bag, Part.BAG)


def _draw_shoulder_bag(canvas: Canvas, body: _Body) -> None:
    u, waist, hand = body.u, body.waist, body.hand
    x = body.x + hand * (body.half_hip + (0 if body.side else 2.5 * u))
    strap = [(body.x - hand * (body.half_shoulder * 0.6), body.shoulder), (x, waist + 1 * u)]
    canvas.limb(strap, 1.8 * u, body.bag, Part.BAG)
    canvas.trapezium(x, waist, 5 * u, waist + 10 * u, 5 * u, body.bag, Part.BAG)
    canvas.limb([(x - 5 * u, waist + 4 * u), (x + 5 * u, waist + 4 * u)], 1.0 * u, darker(body.bag), Part.BAG)


# ---------------------------------------------------------------------------------------------------- head
def _draw_head(canvas: Canvas, body: _Body) -> None:
    """Head, hair and headwear."""
    u, x, y, rx, ry = body.u, body.x, body.head, body.head_rx, body.head_ry
    if body.person.hair_style == "curly":
        shift = 1.2 * body.facing * u if body.side else 0
        canvas.ellipse(x - shift, y - 1.4 * u, rx + 2.6 * u, ry + 1.4 * u, body.hair, Part.HAIR)
    canvas.ellipse(x, y, rx, ry, body.skin, Part.FACE)
    if not body.bald:
        _draw_hair(canvas, body)
    if not body.back:
        _draw_face(canvas, body)
    if body.person.headwear != "none":
        _draw_headwear(canvas, body)


def _draw_hair_behind(canvas: Canvas, body: _Body) -> None:
    """Long hair that falls behind the shoulders; in a side view, on the side away from the face."""
    u, x, half, d = body.u, body.x, body.head_rx, body.facing
    outline = [
        (x - half - 0.8 * u, body.head),
        (x + half + 0.8 * u, body.head),
        (x + (half + 1.2 * u if not body.side or d < 0 else 0), body.shoulder + 6 * u),
        (x - (half + 1.2 * u if not body.side or d > 0 else 0), body.shoulder + 6 * u),
    ]
    canvas.polygon(outline, body.hair, Part.HAIR)


def _draw_hair(canvas: Canvas, body: _Body) -> None:
    u, x, y, rx, ry, d = body.u, body.x, body.head, body.head_rx, body.head_ry, body.facing
    side, style, colour = body.side, body.person.hair_style, body.hair
    if body.back:
        canvas.ellipse(x, y - 0.4 * u, rx + 0.5 * u, ry + 0.2 * u, colour, Part.HAIR)
        if style == "long":
            canvas.trapezium(x, y, rx, y + 15 * u, rx + 1.0 * u, colour, Part.HAIR)
    else:
        # The face stays free below the fringe, in a side view on the side the person looks to.
        arc = [
            (x + (rx + 0.5 * u) * math.cos(a), y - 0.3 * u + (ry + 0.5 * u) * math.sin(a))
            for a in np.linspace(math.pi, 2 * math.pi, 9)
        ]
        fringe = [(x + rx, y - 1.2 * u), (x, y - 2.6 * u), (x - rx, y - 1.2 * u)]
        canvas.polygon(arc + fringe, colour, Part.HAIR)
        if side:
            back_of_head = [
                (x - d * (rx + 0.4 * u), y - 2 * u),
                (x - d * 0.4 * u, y - 2 * u),
                (x - d * 1.6 * u, y + 4.8 * u),
                (x - d * (rx * 0.8), y + 4.8 * u),
            ]
            canvas.polygon(back_of_head, colour, Part.HAIR)
    if style == "ponytail" and (side or body.back):
        root = x - d * (rx + 0.6 * u) if side else x
        tail = [(root, y - 1 * u), (root - (1.6 * d * u if side else 0), y + 6 * u), (root, y + 13 * u)]
        canvas.limb(tail, (2.6 * u, 4.0 * u, 2.0 * u), colour, Part.HAIR)
        canvas.ellipse(root, y - 0.6 * u, 1.4 * u, 1.2 * u, darker(colour, 0.5), Part.HAIR)
    if style == "bun" and body.person.headwear == "none":
        canvas.ellipse(x - (d * 3.4 * u if side else 0), y - ry - 0.8 * u, 3.2 * u, 2.8 * u, colour, Part.HAIR)


def _draw_face(canvas: Canvas, body: _Body) -> None:
    u, x, y, d = body.u, body.x, body.head, body.facing
    for eye in (x + d * 2.8 * u,) if body.side else (x - 1.9 * u, x + 1.9 * u):
        canvas.ellipse(eye, y - 0.2 * u, 0.75 * u, 0.75 * u, (30, 24, 22), Part.FACE)
    left, right = (d * 2.4 * u, d * 4.4 * u) if body.side else (-1.3 * u, 1.3 * u)
    canvas.limb([(x + left, y + 3.2 * u), (x + right, y + 3.2 * u)], 0.8 * u, darker(body.skin, 0.6), Part.FACE)


def _draw_headwear(canvas: Canvas, body: _Body) -> None:
    u, x, y, rx, ry, kind = body.u, body.x, body.head, body.head_rx, body.head_ry, body.person.headwear
    colour = shaded(body.person, "headwear", COLOURS[body.person.headwear_colour])
    low = {"cap": -1.8, "beanie": -1.4, "hat": -2.4, "helmet": 0.6}[kind] * u
    wider = {"cap": 0.7, "beanie": 0.9, "hat": 0.4, "helmet": 1.7}[kind] * u
    rim = y + low
    dome = [
        (x + (rx + wider) * math.cos(a), rim + (ry + low + wider) * math.sin(a))
        for a in np.linspace(math.pi, 2 * math.pi, 11)
    ]
    canvas.polygon(dome, colour, Part.HEADWEAR)
    if kind == "cap":
        if body.side:
            visor = [(x, rim), (x + body.facing * (rx + 4.2 * u), rim + 0.6 * u)]
            canvas.limb(visor, (1.8 * u, 1.6 * u), darker(colour), Part.HEADWEAR)
        elif not body.back:
            canvas.ellipse(x, rim, rx + 0.6 * u, 1.5 * u, darker(colour), Part.HEADWEAR)
    elif kind == "beanie":
        fold = [(x - rx - 0.7 * u, rim - 0.4 * u), (x + rx + 0.7 * u, rim - 0.4 * u)]
        canvas.limb(fold, 2.4 * u, darker(colour, 0.8), Part.HEADWEAR)
        canvas.ellipse(x, y - ry - 1.6 * u, 1.7 * u, 1.7 * u, darker(colour, 0.8), Part.HEADWEAR)
    elif kind == "hat":
        canvas.ellipse(x, rim, rx + 4.6 * u, 1.7 * u, colour, Part.HEADWEAR)
        band = [(x - rx, rim - 1.6 * u), (x + rx, rim - 1.6 * u)]
        canvas.limb(band, 1.3 * u, darker(colour, 0.5), Part.HEADWEAR)
    else:
        ridge = [(x, y - ry - 0.4 * u), (x, rim - 3 * u)]
        canvas.limb(ridge, 2.0 * u, darker(colour, 0.6), Part.HEADWEAR)
