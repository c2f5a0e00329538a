"""torchreid's OSNet and ResNet, which BoxMOT, Ultralytics and others hand on as .pt files of a plain state dict.

Source: torchreid/models/osnet.py, osnet_ain.py and resnet.py of KaiyangZhou/deep-person-reid; torchreid's own files
hold {"state_dict": {"module.conv1...": ...}, "epoch", "rank1", "optimizer"}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .tower import ForeignError, Tower, below, left_out_by, prefix_of

__all__ = ["TITLES", "read_osnet", "read_resnet"]

TITLES = {"osnet": "torchreid's OSNet", "torchreid_resnet": "torchreid's ResNet"}
_LEFT_OUT = {
    r"classifier\.": "torchreid's classifier",
    r"fc\.": "torchreid's linear layer behind the pooling, whose output is its feature; heads here read the map",
}
# width of the first convolution -> MODEL.BACKBONE.DEPTH
_OSNET_WIDTHS = {64: "x1_0", 48: "x0_75", 32: "x0_5", 16: "x0_25"}
_RESNETS = {
    ((2, 2, 2, 2), False): ("resnet18", "18x"),
    ((3, 4, 6, 3), False): ("resnet34", "34x"),
    ((3, 4, 6, 3), True): ("resnet50", "50x"),
    ((3, 4, 23, 3), True): ("resnet101", "101x"),
    ((3, 8, 36, 3), True): ("resnet152", ""),
}


def read_osnet(state: Mapping[str, Tensor]) -> Tower | None:
    """The OSNet of a state dict; None where it is none, or has FastReID's own "backbone." before its names.

    Raises:
        ForeignError: an OSNet-AIN, which FastReID has no module for.
    """
    prefix = prefix_of(state, "conv2.0.conv2a.conv1.weight")
    if prefix is None and prefix_of(state, "conv2.0.conv2.0.layers.0.conv1.weight") is not None:
        raise ForeignError(
            "an OSNet-AIN of torchreid's (osnet_ain.py), whose instance norms are inside its blocks: FastReID has "
            "no such backbone; use an OSNet or OSNet-IBN"
        )
    if prefix is None or prefix.startswith("backbone."):
        return None
    left_out = {prefix + k: why for k, why in left_out_by(_LEFT_OUT, below(state, prefix)).items()}
    pairs = {k[len(prefix) :]: k for k in state if k.startswith(prefix + "conv") and k not in left_out}
    # a file that was cut off is told when it does not fill the backbone
    width = len(state.get(prefix + "conv1.conv.weight", ()))
    depth = _OSNET_WIDTHS.get(width, f"(width {width}, which FastReID does not build)")
    config = {
        "MODEL.BACKBONE.NAME": "build_osnet_backbone",
        "MODEL.BACKBONE.DEPTH": depth,
        "MODEL.BACKBONE.WITH_IBN": prefix + "conv2.0.IN.weight" in state,
        "MODEL.BACKBONE.FEAT_DIM": 8 * width,
    }
    return _tower("osnet", state, pairs, left_out, ("build_osnet_backbone",), config)


def read_resnet(state: Mapping[str, Tensor]) -> Tower | None:
    """torchreid's ResNet of a state dict; None where it is none.

    It has the names of torchvision's; its classifier tells them apart, and an ImageNet file needs no reader.
    """
    if "classifier.weight" not in state or "layer1.0.conv1.weight" not in state or "conv1.weight" not in state:
        return None
    left_out = left_out_by(_LEFT_OUT, state)
    pairs = {k: k for k in state if re.match(r"(conv1|bn1|layer[1-4])\.", k)}
    blocks = tuple(1 + max(int(m[1]) for k in pairs if (m := re.match(rf"layer{i}\.(\d+)\.", k))) for i in range(1, 5))
    bottleneck, ibn = "layer1.0.conv3.weight" in state, "layer1.0.bn1.IN.weight" in state
    grouped = bottleneck and state["layer1.0.conv2.weight"].shape[1] != state["layer1.0.conv2.weight"].shape[0]
    name, depth = _RESNETS.get((blocks, bottleneck), ("", ""))
    if grouped:
        name, depth = {"resnet50": "resnext50_32x4d", "resnet101": "resnext101_32x8d"}.get(name, ""), ""
    builders = (() if ibn or not name else ("build_timm_backbone",)) + (("build_resnet_backbone",) if depth else ())
    config: dict[str, object] = {"MODEL.BACKBONE.NAME": builders[0] if builders else "(none here has these blocks)"}
    if builders[:1] == ("build_timm_backbone",):
        config["MODEL.BACKBONE.TIMM.NAME"] = name
    else:
        config |= {"MODEL.BACKBONE.DEPTH": depth, "MODEL.BACKBONE.WITH_IBN": ibn}
    config["MODEL.BACKBONE.FEAT_DIM"] = 2048 if bottleneck else 512
    tower = _tower("torchreid_resnet", state, pairs, left_out, builders, config)
    exact = f"; build_timm_backbone with MODEL.BACKBONE.TIMM.NAME {name} computes it exactly" if not ibn else ""
    tower.inexact["build_resnet_backbone"] = (
        "FastReID's first max pool has no padding, torchreid's has one pixel, so the maps are shifted by a pixel of "
        f"that layer{exact}"
    )
    return tower


def _tower(
    layout: str,
    state: Mapping[str, Tensor],
    pairs: dict[str, str],
    left_out: dict[str, str],
    builders: tuple[str, ...],
    config: dict[str, object],
) -> Tower:
    tensors = {name: state[key] for name, key in pairs.items()}
    return Tower(layout, TITLES[layout], tensors, pairs, left_out, builders, config)
