"""Who walks where on the drawn street, and when: decided before anything is drawn.

A *visit* is a way through one camera's view: points (frame, x, z) with straight lines between them, x in widths of the
frame, z the depth from 0 (far) to 1 (near). A person makes several, with time between them; those whom both cameras see
change cameras from visit to visit, so that nobody is in two places at once. Kinds of visits, in turn:

    pass    across the street
    wait    to an object, a while behind it, and on or back
    cross   across the street, towards the camera or away from it in the middle
    turn    into the street and back

A companion walks beside somebody, half hidden behind them all the way.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from .options import StreetSpec
from .person import generator
from .shot import Obstacle

CAMERAS = 2
KINDS = ("pass", "wait", "cross", "turn")
# Beyond the frame, where nothing of a person is seen; in widths.
_OUTSIDE = 0.08
_OBJECTS = ("kiosk", "pole", "bush", "box")


class Thing(NamedTuple):
    """An object on the street: x in widths of the frame, z its depth."""

    occluder: Obstacle
    x: float
    z: float


class Pose(NamedTuple):
    """Where a person is in a frame and how they stand: `walked` is the way so far, in widths of the frame."""

    x: float
    z: float
    view: str
    facing: int
    walked: float


@dataclasses.dataclass(frozen=True)
class Visit:
    """A way of a person (from 0) through a camera's view (from 0); `points` (frame, x, z), frames rising."""

    person: int
    camera: int
    kind: str
    points: tuple[tuple[float, float, float], ...]

    def pose(self, frame: int) -> Pose | None:
        """Where the person is; None before the first point and after the last."""
        walked = 0.0
        for (t0, x0, z0), (t1, x1, z1) in zip(self.points, self.points[1:]):
            if t0 <= frame < t1:
                share = (frame - t0) / (t1 - t0)
                dx, dz = x1 - x0, z1 - z0
                facing = 1 if dx >= 0 else -1
                if abs(dx) >= abs(dz) / 4 and dx:
                    view = "side"
                else:  # who stands looks at the camera
                    view = "back" if dz < 0 else "front"
                return Pose(x0 + share * dx, z0 + share * dz, view, facing, walked + share * math.hypot(dx, dz / 4))
            walked += math.hypot(x1 - x0, (z1 - z0) / 4)
        return None


def things(spec: StreetSpec, camera: int) -> list[Thing]:
    """The objects before a camera, from left to right. The kiosk hides whoever is behind it wholly."""
    rng = generator(spec.seed, "street", "things", camera)
    kinds = rng.permutation(_OBJECTS)
    return [
        Thing(
            Obstacle(str(kind), int(rng.integers(1 << 30)), float(rng.uniform(0.5, 1))),
            (i + 0.5) / len(kinds) + float(rng.uniform(-0.06, 0.06)),
            float(rng.uniform(0.5, 0.8)),
        )
        for i, kind in enumerate(kinds)
    ]


def count_of_people(spec: StreetSpec) -> int:
    """People whom any camera sees: the shared ones first, then those of the first camera, then of the second."""
    return CAMERAS * spec.people - (CAMERAS - 1) * spec.shared


def visits(spec: StreetSpec) -> list[Visit]:
    """All visits of all people, in the order of the people."""
    found = []
    for person in range(count_of_people(spec)):
        own = generator(spec.seed, "street", "walk", person)
        shared = person < spec.shared
        camera = person % CAMERAS if shared else (person - spec.shared) // (spec.people - spec.shared)
        # a way takes about 90 frames: some are under way when the film begins
        start, number = float(own.uniform(-80, 0.35 * spec.frames)), 0
        while number == 0 or start < spec.frames - 20:
            kind = KINDS[(person + number) % len(KINDS)]
            before = [v for v in found if v.person == person - 1 and v.camera == camera]
            if number == 0 and person % 3 == 2 and before:
                visit = _beside(before[0], person, own)
            else:
                visit = Visit(person, camera, kind, _way(kind, start, things(spec, camera), own))
            found.append(visit)
            start = visit.points[-1][0] + float(own.uniform(15, 70))
            number += 1
            if shared:
                camera = (camera + 1) % CAMERAS
    return found


def _beside(visit: Visit, person: int, rng: np.random.Generator) -> Visit:
    """The visit of somebody who walks beside another, a little behind and a step farther from the camera."""
    aside = float(rng.uniform(0.015, 0.035)) * (1 if rng.random() < 0.5 else -1)
    points = tuple((t, x + aside, max(z - 0.1, 0.0)) for t, x, z in visit.points)
    return Visit(person, visit.camera, visit.kind, points)


def _way(
    kind: str, start: float, objects: list[Thing], rng: np.random.Generator
) -> tuple[tuple[float, float, float], ...]:
    """The points of a new visit from the frame `start`."""
    speed = float(rng.uniform(0.008, 0.014))  # widths in a frame
    rightwards = bool(rng.random() < 0.5)
    enter, leave = (-_OUTSIDE, 1 + _OUTSIDE) if rightwards else (1 + _OUTSIDE, -_OUTSIDE)
    z = float(rng.uniform(0, 1))
    points = [(start, enter, z)]

    def go(x: float, z: float) -> None:
        t, x0, z0 = points[-1]
        points.append((t + max(math.hypot(x - x0, (z - z0) / 4) / speed, 1.0), x, z))

    middle = float(rng.uniform(0.3, 0.7))
    if kind == "wait":
        # behind the kiosk as often as behind all others, since it alone hides a person wholly
        kiosk = [thing for thing in objects if thing.occluder.kind == "kiosk"]
        thing = kiosk[0] if rng.random() < 0.5 else objects[int(rng.integers(len(objects)))]
        points[0] = (start, enter, thing.z - 0.15)
        go(thing.x, thing.z - 0.15)
        t, x, z = points[-1]
        points.append((t + float(rng.uniform(8, 45)), x, z))
        go(leave if rng.random() < 0.5 else enter, z)
    elif kind == "cross":
        go(middle, z)
        other = float(rng.uniform(0.55, 1)) if z < 0.5 else float(rng.uniform(0, 0.45))
        go(middle + 0.01 * (1 if rightwards else -1), other)
        go(leave, other)
    elif kind == "turn":
        go(middle, z)
        go(enter, z)
    else:
        go(leave, z)
    return tuple(points)
