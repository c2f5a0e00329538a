"""Towers of other projects: their files, by the names of the modules here that compute the same function.

    vit.py        TransReID, TransReID-SSL (with and without its convolutional stem), PersonViT, HAP: a ViT
    swin.py       SOLIDER: a Swin Transformer with a semantic weight
    torchreid.py  torchreid's OSNet and ResNet, which BoxMOT and others hand on as .pt
    zoo.py        FastReID's own model zoo, whose heads had other names before version 1.0

A layout is recognised by its names; every tensor of a file is loaded, or left out with a reason. No FastReID and no
configuration in here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from torch import Tensor, nn

from ...errors import first_few
from . import swin, torchreid, vit
from .tower import ForeignError, Tower, grid_of, module_prefix
from .zoo import OLD_EVALUATION, zoo_names

__all__ = ["LAYOUTS", "as_named_here", "recognise_tower", "tower_weights"]

logger = logging.getLogger(__name__)

# layout -> title; the reader of each takes a state dict and gives a Tower, or None where it is none of its
LAYOUTS = vit.TITLES | swin.TITLES | torchreid.TITLES
_READERS = (vit.read, swin.read, torchreid.read_osnet, torchreid.read_resnet)


def recognise_tower(state: Mapping[str, Tensor], origin: str = "the file") -> Tower | None:
    """The tower that a state dict of another project holds; None where no layout knows its names.

    Args:
        origin: what it was read from, for messages.

    Raises:
        ForeignError: a layout knows them in part; the message says what is missing or left over.
    """
    try:
        tower = next(filter(None, (read(state) for read in _READERS)), None)
        if tower is not None:
            tower.check_whole(state)
    except ForeignError as error:
        raise ForeignError(f"{origin} is {error}") from error
    return tower


def tower_weights(module: nn.Module, tower: Tower, origin: str, *, prefix: str = "") -> dict[str, Tensor]:
    """A tower's tensors for a module, its position embedding in the module's grid; says what was left out.

    Args:
        prefix: of the tower within the module.

    Raises:
        ForeignError: the module misses some, or has others beside them.
    """
    state = {name[len(prefix) :]: value for name, value in module.state_dict().items() if name.startswith(prefix)}
    own = {name for name in state if name in tower.state or not re.search(r"num_batches_tracked$|^NL_\d", name)}
    missing, strange = sorted(own - set(tower.state)), sorted(set(tower.state) - own)
    if missing or strange:
        found = [f"{len(missing)} of {len(own)} weights are missing, such as {missing[0]}"] if missing else []
        found += [f"the model has no place for its {first_few(strange, 3)}"] if strange else []
        raise ForeignError(
            f"{origin} does not fill {type(module).__name__}: it is {tower.title}, and {'; '.join(found)}. Whole, it "
            f"wants {tower.wants()}"
        )
    counts = {name: value for name, value in state.items() if name.endswith("num_batches_tracked")}
    weights = counts | tower.fitted(grid_of(module))  # files of before PyTorch 0.4.1 have no counts
    logger.info("%s: %s", origin, tower.describe())
    notes = list(tower.notes)
    if type(getattr(module, "backbone", module)).__module__.startswith("fastreid."):
        notes += tower.inexact.values()
    for note in notes:
        logger.warning("%s: %s", origin, note)
    return weights


def as_named_here(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> Mapping[str, Tensor]:
    """A state dict by the names of a whole model, where it is a tower of another project or of FastReID's older zoo.

    Raises:
        ForeignError: a tower that the model's backbone does not compute.
    """
    expected = model.state_dict()
    if any(name in expected for name in state):
        renamed = zoo_names(state, expected, origin)
        for old, new in renamed.items():
            logger.info("%s: %s is %s here, as of FastReID 1.0", origin, old, new)
        if any("bnneck." in old for old in renamed):
            logger.warning("%s: %s", origin, OLD_EVALUATION)
        return {renamed.get(name, name): value for name, value in state.items()} if renamed else state
    tower = recognise_tower(state, origin)
    if tower is None:
        return state
    prefix = module_prefix(expected, tower)
    if prefix is None:
        raise ForeignError(f"{origin} is {tower.title}, which is no backbone of this model. It wants {tower.wants()}")
    return {prefix + name: value for name, value in tower_weights(model, tower, origin, prefix=prefix).items()}
