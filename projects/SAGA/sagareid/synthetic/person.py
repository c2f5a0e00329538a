"""What a drawn person is: a handful of named attributes, decided by a seed, a population and a number.

A *population* is a named space of people: `get_person(seed, population, index)` seeds its generator with the name of
the population, so "train", "test" and "pretrain" cannot share people. Four consecutive indices are a *family*:
siblings that differ from its first member in `SIBLING_CHANGES` of the attribute groups `GROUPS`. Siblings make a
gallery confusable and force a model to look at local details.

Every value follows from the seeds: no state, no `hash()`, no dependence on the process.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Collection, Iterable, Sequence

import numpy as np

# Raise when a seed no longer gives the bytes it gave before: data sets on disk carry the number.
GENERATOR_VERSION = 1
FAMILY_SIZE = 4
SIBLING_CHANGES = 3

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "black": (28, 28, 32),
    "white": (236, 236, 232),
    "grey": (130, 132, 136),
    "red": (192, 34, 40),
    "orange": (234, 124, 30),
    "yellow": (230, 204, 52),
    "green": (44, 132, 62),
    "blue": (44, 98, 204),
    "navy": (26, 36, 88),
    "purple": (116, 52, 150),
    "pink": (234, 134, 172),
    "brown": (112, 70, 40),
    "beige": (208, 188, 150),
}
HAIR_COLOURS: dict[str, Colour] = {
    "black": (24, 22, 22),
    "brown": (92, 58, 34),
    "blond": (216, 184, 104),
    "red": (160, 66, 28),
    "grey": (150, 150, 150),
    "white": (226, 224, 220),
}
SKINS: dict[str, Colour] = {"light": (238, 204, 180), "medium": (200, 150, 112), "dark": (110, 72, 50)}
HAIR_STYLES = ("short", "long", "curly", "ponytail", "bun", "bald")
HEADWEAR = ("none", "cap", "beanie", "hat", "helmet")
UPPERS = ("t-shirt", "shirt", "jacket", "hoodie", "coat", "vest")
PATTERNS = ("plain", "striped", "checked", "dotted", "two-tone")
LOWERS = ("trousers", "shorts", "skirt", "long skirt")
SHOES = ("shoes", "trainers", "boots")
BAGS = ("none", "backpack", "shoulder bag", "handbag", "suitcase")
BUILDS = {"slim": 0.84, "average": 1.0, "heavy": 1.24}
HEIGHTS = {"short": 0.9, "average": 1.0, "tall": 1.09}

# Attribute groups in which siblings differ; each is drawn as a whole.
GROUPS: dict[str, tuple[str, ...]] = {
    "hair": ("hair_colour", "hair_style"),
    "headwear": ("headwear", "headwear_colour"),
    "scarf": ("scarf_colour",),
    "upper kind": ("upper",),
    "upper colours": ("upper_colour", "upper_colour2", "upper_pattern"),
    "lower": ("lower", "lower_colour"),
    "shoes": ("shoes", "shoes_colour"),
    "bag": ("bag", "bag_colour"),
    "body": ("build", "height"),
    "skin": ("skin",),
}
# Garment colours vary within their name, by person: slots of `Person.shades`.
_SHADE_SLOTS = {"hair": 0, "headwear": 1, "scarf": 2, "upper": 3, "upper2": 4, "lower": 5, "shoes": 6, "bag": 7}
_SHADES_OF_GROUP = {
    "hair": (0,),
    "headwear": (1,),
    "scarf": (2,),
    "upper colours": (3, 4),
    "lower": (5,),
    "shoes": (6,),
    "bag": (7,),
}


@dataclasses.dataclass(frozen=True)
class Person:
    """Attributes of a person; what is absent ("none") has the colour "none" too.

    `upper_colour2` is the second colour of a pattern ("none" if plain); `shades` are RGB offsets of the garments'
    colours, which no caption tells.
    """

    hair_colour: str
    hair_style: str
    headwear: str
    headwear_colour: str
    scarf_colour: str
    upper: str
    upper_colour: str
    upper_colour2: str
    upper_pattern: str
    lower: str
    lower_colour: str
    shoes: str
    shoes_colour: str
    bag: str
    bag_colour: str
    build: str
    height: str
    skin: str
    shades: tuple[Colour, ...]

    def attributes(self) -> dict[str, str]:
        """The named attributes, without the shades."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "shades"}


def generator(seed: int, *path: int | str) -> np.random.Generator:
    """A generator of random numbers named by a path; equal on every machine and in every process."""
    words = [seed] + [zlib.crc32(p.encode()) if isinstance(p, str) else p for p in path]
    return np.random.Generator(np.random.PCG64(words))


def rgb(values: Iterable[float]) -> Colour:
    """A colour of three numbers, cut to whole ones."""
    red, green, blue = (int(v) for v in values)
    return red, green, blue


def pick(rng: np.random.Generator, values: Collection[str], weights: Sequence[float] | None = None) -> str:
    """One of `values`, each as likely as its weight says, or all alike."""
    values = tuple(values)
    if weights is None:
        return values[int(rng.integers(len(values)))]
    return values[int(np.searchsorted(np.cumsum(weights) / sum(weights), rng.random(), side="right"))]


def _draw_group(rng: np.random.Generator, group: str) -> dict[str, str]:
    """Values of one attribute group, drawn independently of the others."""
    if group == "hair":
        style = pick(rng, HAIR_STYLES, (5, 5, 2, 3, 2, 1))
        return {"hair_style": style, "hair_colour": "none" if style == "bald" else pick(rng, HAIR_COLOURS)}
    if group in ("headwear", "bag"):
        kind = pick(rng, HEADWEAR, (5, 2, 2, 1, 1)) if group == "headwear" else pick(rng, BAGS, (3, 3, 3, 2, 1))
        return {group: kind, f"{group}_colour": "none" if kind == "none" else pick(rng, COLOURS)}
    if group == "scarf":
        return {"scarf_colour": "none" if rng.random() < 0.75 else pick(rng, COLOURS)}
    if group == "upper kind":
        return {"upper": pick(rng, UPPERS)}
    if group == "upper colours":
        first, pattern = pick(rng, COLOURS), pick(rng, PATTERNS, (5, 3, 2, 2, 3))
        second = "none" if pattern == "plain" else pick(rng, [c for c in COLOURS if _far_apart(c, first)])
        return {"upper_colour": first, "upper_colour2": second, "upper_pattern": pattern}
    if group == "lower":
        return {"lower": pick(rng, LOWERS, (5, 2, 2, 1)), "lower_colour": pick(rng, COLOURS)}
    if group == "shoes":
        return {"shoes": pick(rng, SHOES), "shoes_colour": pick(rng, COLOURS)}
    if group == "body":
        return {"build": pick(rng, BUILDS), "height": pick(rng, HEIGHTS)}
    return {"skin": pick(rng, SKINS)}


def _far_apart(a: str, b: str) -> bool:
    """Whether a pattern in these two colours can be seen."""
    return sum(abs(x - y) for x, y in zip(COLOURS[a], COLOURS[b])) > 150


def shaded(person: Person, slot: str, colour: Colour) -> Colour:
    """A named colour in the person's own shade of it."""
    return rgb(min(255, max(0, v + d)) for v, d in zip(colour, person.shades[_SHADE_SLOTS[slot]]))


def new_person(rng: np.random.Generator) -> Person:
    """A person whose attribute groups are drawn independently."""
    values = {}
    for group in GROUPS:
        values.update(_draw_group(rng, group))
    shades = tuple(rgb(rng.integers(-14, 15, 3)) for _ in _SHADE_SLOTS)
    return Person(**values, shades=shades)


def _sibling(first: Person, rng: np.random.Generator) -> Person:
    """`first` with `SIBLING_CHANGES` attribute groups drawn anew, each to a different value."""
    values, shades = first.attributes(), list(first.shades)
    for number in rng.choice(len(GROUPS), SIBLING_CHANGES, replace=False):
        group = tuple(GROUPS)[int(number)]
        drawn = _draw_group(rng, group)
        while all(values[k] == v for k, v in drawn.items()):
            drawn = _draw_group(rng, group)
        values.update(drawn)
        for slot in _SHADES_OF_GROUP.get(group, ()):
            shades[slot] = rgb(rng.integers(-14, 15, 3))
    return Person(**values, shades=tuple(shades))


def differing_groups(a: Person, b: Person) -> tuple[str, ...]:
    """Names of the attribute groups in which two people differ."""
    return tuple(g for g, names in GROUPS.items() if any(getattr(a, n) != getattr(b, n) for n in names))


@functools.lru_cache(maxsize=512)
def family(seed: int, population: str, number: int) -> tuple[Person, ...]:
    """The `FAMILY_SIZE` siblings of a family; any two differ in at least two attribute groups."""
    members = [new_person(generator(seed, population, "family", number))]
    rng = generator(seed, population, "siblings", number)
    while len(members) < FAMILY_SIZE:
        candidate = _sibling(members[0], rng)
        if all(len(differing_groups(candidate, m)) >= 2 for m in members):
            members.append(candidate)
    return tuple(members)


def get_person(seed: int, population: str, index: int) -> Person:
    """Person `index` (from 0) of a population; `index // FAMILY_SIZE` is the family."""
    return family(seed, population, index // FAMILY_SIZE)[index % FAMILY_SIZE]
