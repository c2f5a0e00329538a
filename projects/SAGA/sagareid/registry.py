"""Registries of the parts that a configuration names, beside FastReID's own of backbones, heads, models and data sets.

    LOSS_REGISTRY           terms of the loss, for MODEL.LOSSES.NAME         modeling/terms.py: LossTerm
    POOL_REGISTRY           pooling of refined patches, MODEL.SAGA.POOL      modeling/pooling.py: LinearPool
    DOMAIN_ANCHOR_REGISTRY  what makes domain anchors, MODEL.SAGA.DOMAIN_ANCHORS   modeling/anchors.py: DomainAnchors
    EVALUATION_FEATURE_REGISTRY  what is ranked by, TEST.FEATURE and REPORT  evaluation/features.py: EvaluationFeature

A part is one file: a class, its registration, the keys that it adds, their check. A configuration names it by its
class, or by the `name` that the class gives itself. These two static methods are optional, for FastReID's registries as
well::

    add_keys(cfg)   adds the part's keys with their defaults, each below a comment, before any file is read
    check(cfg)      yields what is wrong with them in a configuration that uses the part, a sentence each

The file is imported by `--import`; those that ship are imported by the packages they are in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from fastreid.utils.registry import Registry

from .compat import registered
from .errors import did_you_mean

__all__ = [
    "DOMAIN_ANCHOR_REGISTRY",
    "EVALUATION_FEATURE_REGISTRY",
    "FASTREID_LOSSES",
    "LOSS_REGISTRY",
    "POOL_REGISTRY",
    "FastReIDRegistries",
    "computed_losses",
    "fastreid_registries",
    "get_part",
    "part_names",
    "parts",
    "parts_with_keys",
]

LOSS_REGISTRY = Registry("LOSS")
POOL_REGISTRY = Registry("POOL")
DOMAIN_ANCHOR_REGISTRY = Registry("DOMAIN_ANCHOR")
EVALUATION_FEATURE_REGISTRY = Registry("EVALUATION_FEATURE")

# What FastReID's meta-architectures compute of any head that returns its training dictionary.
FASTREID_LOSSES = ("CrossEntropyLoss", "TripletLoss", "CircleLoss", "Cosface")


class FastReIDRegistries(NamedTuple):
    """FastReID's own registries."""

    meta_arch: Registry
    backbones: Registry
    heads: Registry
    datasets: Registry


def fastreid_registries() -> FastReIDRegistries:
    """FastReID's own registries, with our parts in them.

    They are imported here and not at the top: our parts come with them, and import this module and `config`.
    """
    from fastreid.data.datasets import DATASET_REGISTRY
    from fastreid.modeling.backbones import BACKBONE_REGISTRY
    from fastreid.modeling.heads import REID_HEADS_REGISTRY
    from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

    return FastReIDRegistries(META_ARCH_REGISTRY, BACKBONE_REGISTRY, REID_HEADS_REGISTRY, DATASET_REGISTRY)


def parts(registry: Registry) -> dict[str, Any]:
    """The parts of a registry by the names that a configuration uses, in the order of registration.

    Raises:
        ValueError: two parts of one name.
    """
    found: dict[str, Any] = {}
    for part in registered(registry).values():
        name = vars(part).get("name") or part.__name__  # its own: a subclass is another part
        if name in found:
            raise ValueError(f"{part.__qualname__} and {found[name].__qualname__} are both registered as {name!r}")
        found[name] = part
    return found


def get_part(registry: Registry, key: str, name: str) -> Any:
    """The part that `key` of a configuration names.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    found = parts(registry)
    if name not in found:
        raise ValueError(f"{key} is {name!r}; valid: {', '.join(sorted(found))}.{did_you_mean(name, found)}")
    return found[name]


def part_names(registry: Registry) -> list[str]:
    """The names that a configuration uses for the parts of a registry."""
    return list(parts(registry))


def parts_with_keys() -> Iterator[Any]:
    """Every registered part that has `add_keys`; of those that inherit the same one, the first."""
    seen = set()
    fastreid = fastreid_registries()
    ours = (DOMAIN_ANCHOR_REGISTRY, POOL_REGISTRY, LOSS_REGISTRY, EVALUATION_FEATURE_REGISTRY)
    of_models = (fastreid.meta_arch, fastreid.backbones, fastreid.heads, *ours)
    for registry in (*of_models, fastreid.datasets):
        for part in registered(registry).values():
            add_keys = getattr(part, "add_keys", None)
            if add_keys is not None and add_keys not in seen:
                seen.add(add_keys)
                yield part


# ---- losses and the heads that give what they read ------------------------------------------------------------------


def computed_losses(meta_arch: type, head: type) -> list[str]:
    """The names that MODEL.LOSSES.NAME may hold for a meta-architecture and a head.

    A head lists in `gives` what a term may read; the terms that it computes are the registered ones that read nothing
    else. A head without `gives` is one of FastReID's kind, whose losses are FastReID's. A meta-architecture that
    computes other losses than these two rules say lists them in `loss_names`.
    """
    if hasattr(meta_arch, "loss_names"):
        return list(meta_arch.loss_names)
    given = getattr(head, "gives", None)
    if given is None:
        names = list(FASTREID_LOSSES)
    else:
        names = [name for name, term in parts(LOSS_REGISTRY).items() if set(term.reads) <= set(given)]
    if not getattr(meta_arch, "registered_losses", False):
        names = [name for name in names if name in FASTREID_LOSSES]
    if meta_arch.__module__.startswith("fastreid.") and meta_arch.__name__ == "MGN":  # meta_arch/mgn.py:289-354
        names = [name for name in names if name in ("CrossEntropyLoss", "TripletLoss")]
    return names
