"""Captions of drawn pedestrians: text from attributes, about what can be seen and nothing else.

Three kinds, all well below CLIP's 77 tokens::

    caption          the whole person, "a tall slim person with long brown hair, wearing a red and white striped ..."
    part_caption     one attribute place, "the upper garment of a person: a red and white striped jacket"
    REGION_PHRASES   what a region is, whatever it looks like, "the upper body of a person"; they are the anchor
                     phrases (assets/anchor_phrases.txt), and stand in the pretraining so that they mean something
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from .person import Person

_SEEN_FROM = {
    "front": ("seen from the front", "facing the camera", "walking towards the camera"),
    "back": ("seen from behind", "seen from the back", "walking away"),
    "side": ("seen from the side", "walking past"),
}


class Region(NamedTuple):
    """A phrase, the `figure.PARTS` that show what it names, and for which people it is true."""

    phrase: str
    parts: tuple[str, ...]
    holds: Callable[[Person], bool]


def _always(_: Person) -> bool:
    return True


REGION_PHRASES: tuple[Region, ...] = (
    Region("the hair of a person", ("hair",), _always),
    Region("the head and face of a person", ("face", "hair", "headwear"), _always),
    Region("a cap or hat on the head", ("headwear",), lambda p: p.headwear in ("cap", "hat")),
    Region("a beanie or helmet on the head", ("headwear",), lambda p: p.headwear in ("beanie", "helmet")),
    Region("a scarf around the neck", ("scarf",), _always),
    Region("the upper body of a person", ("upper", "sleeves", "scarf"), _always),
    Region("the sleeves and arms of a person", ("sleeves", "arms"), _always),
    Region("the colour of the upper garment", ("upper", "sleeves"), _always),
    Region("the pattern of the upper garment", ("upper", "sleeves"), lambda p: p.upper_pattern != "plain"),
    Region("a jacket or coat on the body", ("upper", "sleeves"), lambda p: p.upper in ("jacket", "coat")),
    Region("a shirt or hoodie on the body", ("upper", "sleeves"), lambda p: p.upper in ("shirt", "t-shirt", "hoodie")),
    Region("a vest with bare arms", ("upper", "arms"), lambda p: p.upper == "vest"),
    Region("the lower body of a person", ("lower", "legs", "shoes"), _always),
    Region("the colour of the lower garment", ("lower",), _always),
    Region("the trousers on the legs", ("lower",), lambda p: p.lower == "trousers"),
    Region("the shorts or skirt above the legs", ("lower",), lambda p: p.lower != "trousers"),
    Region("the bare legs of a person", ("legs",), _always),
    Region("the feet and shoes of a person", ("shoes",), _always),
    Region("a pair of boots or trainers", ("shoes",), lambda p: p.shoes != "shoes"),
    Region("a backpack worn on the back", ("bag",), lambda p: p.bag == "backpack"),
    Region("a shoulder bag with a strap", ("bag",), lambda p: p.bag == "shoulder bag"),
    Region("a handbag or suitcase in the hand", ("bag",), lambda p: p.bag in ("handbag", "suitcase")),
    Region("the build and height of a person", ("upper", "sleeves", "lower", "legs", "face", "hair"), _always),
    Region("the skin of a person", ("face", "arms", "legs"), _always),
)


def _a(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def describe(p: Person, place: str) -> str:
    """What the person has at an attribute place (`figure.PLACES`), "a red and white striped jacket"."""
    if place == "hair":
        return {
            "curly": f"curly {p.hair_colour} hair",
            "ponytail": f"{p.hair_colour} hair in a ponytail",
            "bun": f"{p.hair_colour} hair in a bun",
        }.get(p.hair_style, f"{p.hair_style} {p.hair_colour} hair")
    if place == "headwear":
        return _a(f"{p.headwear_colour} {p.headwear}")
    if place == "scarf":
        return _a(f"{p.scarf_colour} scarf")
    if place == "upper":
        colours = p.upper_colour if p.upper_pattern == "plain" else f"{p.upper_colour} and {p.upper_colour2}"
        return _a(f"{colours} {p.upper_pattern} {p.upper}")
    if place == "lower":
        return f"{p.lower_colour} {p.lower}" if p.lower in ("trousers", "shorts") else _a(f"{p.lower_colour} {p.lower}")
    if place == "shoes":
        return f"{p.shoes_colour} {p.shoes}"
    if place == "bag":
        return _a(f"{p.bag_colour} {p.bag}")
    return f"{p.skin} skin"


_PLACE_NAMES = {
    "hair": ("the hair of a person", "the head of a person"),
    "headwear": ("the headwear of a person", "on the head"),
    "scarf": ("around the neck", "the neck of a person"),
    "upper": ("the upper garment of a person", "the upper body", "on the body"),
    "lower": ("the lower garment of a person", "the lower body", "on the legs"),
    "shoes": ("the shoes of a person", "on the feet", "the feet of a person"),
    "bag": ("the bag of a person", "carried by a person", "in the hand or on the back"),
    "skin": ("the skin of a person", "the face and arms"),
}


def part_caption(p: Person, place: str, rng: np.random.Generator) -> str:
    """A short caption of one attribute place, in one of several wordings."""
    words, style = describe(p, place), int(rng.integers(3))
    if style == 0:
        return words
    names = _PLACE_NAMES[place]
    name = names[int(rng.integers(len(names)))]
    return f"{name}: {words}" if style == 1 else f"a person with {words}."


def caption(p: Person, view: str, places: Collection[str], rng: np.random.Generator) -> str:
    """A caption of the whole person that names what `places` (`Drawing.places`) shows, so for a back view no face.

    Garments come in random order, and the wording varies; build and height are always named.
    """
    person = ("a person", "a pedestrian")[int(rng.integers(2))]
    figure = [w for w in (p.height, p.build) if w != "average"]
    if figure:
        person = (
            f"{_a(' '.join(figure))} {person[2:]}" if rng.random() < 0.7 else f"{person} of {' '.join(figure)} build"
        )
    head = [describe(p, "hair")] if "hair" in places else []
    if p.hair_style == "bald" and "skin" in places:
        head = ["a bald head"]
    if "skin" in places:
        head.append(describe(p, "skin"))
    worn = [describe(p, place) for place in ("upper", "lower", "shoes", "headwear", "scarf") if place in places]
    worn = [worn[int(i)] for i in rng.permutation(len(worn))]
    clauses = []
    if head:
        clauses.append("with " + " and ".join(head[int(i)] for i in rng.permutation(len(head))))
    if worn:
        clauses.append(("wearing ", "in ")[int(rng.integers(2))] + ", ".join(worn))
    if "bag" in places:
        clauses.append(("carrying ", "with ")[int(rng.integers(2))] + describe(p, "bag"))
    clauses = [clauses[int(i)] for i in rng.permutation(len(clauses))]
    seen = _SEEN_FROM[view]
    start = ("", "a photo of ", "a picture of ")[int(rng.integers(3))]
    text = start + person + " " + ", ".join(clauses) if clauses else start + person
    if rng.random() < 0.6:
        text += ", " + seen[int(rng.integers(len(seen)))]
    return text + ("." if rng.random() < 0.5 else "")
