"""What a shot is: how a person stands, what sees them, and what may stand in front of them."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from .person import Colour, generator, pick, rgb

VIEWS = ("front", "back", "side")
OCCLUDERS = ("pole", "box", "car", "bush", "fence", "person")


@dataclasses.dataclass(frozen=True)
class Camera:
    """How a camera sees: colour `gain` (RGB), `exposure`, `contrast`, `blur` (px), `noise` (grey levels), scene."""

    gain: tuple[float, float, float]
    exposure: float
    contrast: float
    blur: float
    noise: float
    scene: str
    wall: Colour
    floor: Colour
    seed: int


@dataclasses.dataclass(frozen=True)
class Obstacle:
    """Something in front of the person; `reach` in 0..1 is how far it comes into the picture."""

    kind: str
    seed: int
    reach: float


@dataclasses.dataclass(frozen=True)
class Shot:
    """One picture of a person. `swing`, `arm` in -1..1 move the limbs, `facing` is -1 or 1, offsets in px."""

    view: str
    swing: float
    arm: float
    facing: int
    scale: float
    dx: float
    dy: float
    camera: Camera
    occluder: Obstacle | None
    seed: int


SCENES = ("brick", "tiles", "grass", "shop", "road", "concrete", "station", "hall")
# The first cameras are chosen by hand, so that six of them surely look different; later ones are drawn.
_CAMERAS = (
    Camera((1.00, 1.00, 1.00), 1.00, 1.00, 0.25, 3, "concrete", (150, 150, 146), (118, 116, 112), 1),
    Camera((1.16, 1.00, 0.80), 0.92, 1.00, 0.50, 5, "brick", (150, 92, 74), (128, 116, 104), 2),
    Camera((0.84, 0.98, 1.18), 0.78, 0.90, 0.40, 7, "station", (110, 124, 140), (84, 90, 98), 3),
    Camera((0.94, 1.10, 0.90), 1.08, 1.08, 0.30, 4, "grass", (120, 150, 110), (92, 134, 70), 4),
    Camera((1.04, 0.98, 1.08), 0.62, 0.86, 0.70, 10, "road", (96, 98, 108), (70, 70, 76), 5),
    Camera((1.06, 1.04, 0.98), 1.20, 0.84, 0.60, 5, "hall", (206, 200, 188), (186, 176, 158), 6),
    Camera((1.00, 0.94, 0.86), 0.86, 1.16, 0.90, 4, "shop", (140, 120, 100), (120, 108, 98), 7),
    Camera((0.90, 1.02, 1.06), 1.16, 0.94, 0.35, 8, "tiles", (176, 190, 194), (150, 156, 160), 8),
)


@functools.lru_cache(maxsize=256)
def get_camera(number: int) -> Camera:
    """Camera `number` (from 0) of the data set."""
    return _CAMERAS[number] if number < len(_CAMERAS) else random_camera(generator(0, "camera", number))


def random_camera(rng: np.random.Generator) -> Camera:
    """A camera with cast, exposure, blur, noise and scene drawn from the range that the data set's cameras span."""
    wall = rgb(rng.integers(60, 215, 1) + rng.integers(-30, 31, 3))
    floor = rgb(rng.integers(60, 190, 1) + rng.integers(-25, 26, 3))
    red, green, blue = (float(v) for v in rng.uniform(0.82, 1.18, 3))
    return Camera(
        gain=(red, green, blue),
        exposure=float(rng.uniform(0.62, 1.25)),
        contrast=float(rng.uniform(0.84, 1.16)),
        blur=float(rng.uniform(0.2, 0.9)),
        noise=float(rng.uniform(2, 10)),
        scene=pick(rng, SCENES),
        wall=wall,
        floor=floor,
        seed=int(rng.integers(1 << 30)),
    )


def random_shot(rng: np.random.Generator, seen_by: Camera, occluded: float = 0.2, view: str | None = None) -> Shot:
    """A shot with everything but the camera drawn at random.

    Args:
        seen_by: the camera.
        occluded: probability in 0..1 of an occluder.
        view: one of `VIEWS`; None draws it.
    """
    occluder = None
    if rng.random() < occluded:
        occluder = Obstacle(pick(rng, OCCLUDERS), int(rng.integers(1 << 30)), float(rng.uniform(0, 1)))
    return Shot(
        view=view or pick(rng, VIEWS, (4, 3, 3)),
        swing=float(rng.uniform(-1, 1)),
        arm=float(rng.uniform(-1, 1)),
        facing=1 if rng.random() < 0.5 else -1,
        scale=float(rng.uniform(0.93, 1.06)),
        dx=float(rng.uniform(-2.5, 2.5)),
        dy=float(rng.uniform(-2.5, 2.5)),
        camera=seen_by,
        occluder=occluder,
        seed=int(rng.integers(1 << 30)),
    )
