"""A trained model as one function from pixels to the feature that it ranks by; `Extractor` calls it, export writes it.

B images, (H, W) their size, F feature width, K text anchors, (h, w) patch grid.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from ..config import reads_cameras
from ..evaluation.features import Parts, build_feature, result_feature
from ..evaluation.flip import mean_over_views, views
from ..evaluation.postprocess import l2
from ..modeling.build import model_layout
from ..modeling.saga_head import SAGAHead
from ..modeling.tokens import tower_output
from ..structures import CLIPFeatures, as_features
from .load import load_model
from .visibility import Readout

__all__ = ["FeatureModel", "create_model"]


def create_model(name: str | os.PathLike, *, device: str = "auto", feature: str = "auto") -> FeatureModel:
    """A trained model by name, as a module from pixels to the feature that it ranks by.

        model = sagareid.create_model("drawn-xs")
        features = model(torch.rand(2, 3, *model.size) * 255)       # (2, F), unit length

    Args:
        name: the folder of a run, a file of weights, ``hf-hub:ORG/MODEL[@REVISION]``, or one of `list_models`.
        device: "auto" for the GPU where there is one, else the CPU; or a torch device.
        feature: one of the evaluation's; "auto" for the run's result.

    Returns:
        In evaluation mode; its parameters can be trained. `cfg` is the run's configuration, `size` (H, W), `width` F.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: as `load_model`; no such feature.
    """
    return FeatureModel(*load_model(name, device=device), feature)


class FeatureModel(nn.Module):
    """From images to one feature that the evaluator ranks by, of unit length. B images, (H, W) their size.

    Normalisation is inside, TEST.FLIP is honoured, and the evaluator's own code makes the feature. Steps that look at
    other images (neighbour centralisation, query expansion, re-ranking) belong to a gallery and are no part of it.
    """

    def __init__(self, cfg: Any, model: nn.Module, feature: str = "auto"):
        """Choose the feature.

        Args:
            cfg, model: as `load_model` gives them.
            feature: a feature of the evaluation; "auto" takes the run's result, by TEST.FEATURE.

        Raises:
            ValueError: the model gives no such feature.
        """
        super().__init__()
        if feature != "auto":
            cfg = cfg.clone()
            cfg.defrost()
            cfg.TEST.FEATURE = feature
            cfg.freeze()
        self.cfg, self.model = cfg, model.eval()
        self.size = tuple(cfg.INPUT.CROP.SIZE if cfg.INPUT.CROP.ENABLED else cfg.INPUT.SIZE_TEST)
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"images are of the fixed size INPUT.SIZE_TEST (H, W), not {list(self.size)}")
        self.reads_cameras = reads_cameras(cfg)
        with torch.no_grad():
            raw = self._raw(torch.zeros(1, 3, *self.size, device=self.device), None)
        self.layout = model_layout(model, raw.shape[1])
        self.feature = result_feature(cfg, self.layout)
        self._made = build_feature(cfg, self.feature)
        self.width = self._made.make(Parts(raw, self.layout)).shape[1]

    @property
    def device(self) -> torch.device:
        return self.model.get_buffer("pixel_mean").device

    @property
    def anchor_names(self) -> list[str]:
        """Names of the text anchors; empty for a head without them."""
        head = getattr(self.model, "heads", None)  # FastReID's MGN has none
        return head.anchor_names if isinstance(head, SAGAHead) else []

    def forward(
        self,
        images: Tensor,
        cameras: Tensor | None = None,
        attention: bool = False,
        readout: Readout | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """The features of a batch.

        Args:
            images: (B, 3, H, W) float RGB in 0..255, of the model's size.
            cameras: (B,) indices among MODEL.CLIP.CAMERAS, -1 for unknown; None where all are unknown.
            attention: also return the text anchors' attention over the images as they are, not flipped.
            readout: also return how much of the person is seen, of the images as they are.

        Returns:
            (B, F) float32 features of unit length; with `attention` also (B, K, h, w) float32; with `readout` also
            (B, 1 + BANDS) float32.

        Raises:
            ValueError: attention of a model without anchors.
        """
        if self.reads_cameras and cameras is None:
            cameras = torch.full_like(images[:, 0, 0, 0], -1, dtype=torch.long)
        plain, *mirrored = views(images, self.cfg.TEST.FLIP.ENABLED)
        further: list[Tensor] = []
        if attention:
            raw, maps = self._heads(self._anchored(plain, cameras))
            further.append(maps)
        else:
            raw = self._raw(plain, cameras)
        if readout is not None:
            further.append(readout.visibility(plain))
        raw = mean_over_views([raw, *(self._raw(pixels, cameras) for pixels in mirrored)])
        unit = l2(self._made.make(Parts(raw.float(), self.layout)))
        return (unit, *(found.float() for found in further)) if further else unit

    def _batch(self, images: Tensor, cameras: Tensor | None) -> dict[str, Tensor]:
        # a copy: FastReID's own Baseline normalises in place
        return {"images": images.clone()} | ({} if cameras is None else {"cameras": cameras})

    def _raw(self, images: Tensor, cameras: Tensor | None) -> Tensor:
        """(B, sum of the layout's widths)."""
        return self.model(self._batch(images, cameras)).flatten(1)

    def _anchored(self, images: Tensor, cameras: Tensor | None) -> CLIPFeatures | Tensor:
        """`tower` of a model with anchors."""
        head, head_input = (getattr(self.model, name, None) for name in ("heads", "head_input"))
        if not isinstance(head, SAGAHead) or head_input is None:
            what = (
                type(self.model).__name__
                if head is None
                else f"{type(head).__name__} under {type(self.model).__name__}"
            )
            raise ValueError(f"{what} has no anchors' attention; SAGAHead under SAGABaseline has")
        return head_input(self._batch(images, cameras))

    def tower(self, images: Tensor, cameras: Tensor | None) -> CLIPFeatures | Tensor:
        """What the backbone gives the head of a batch, as of `forward`.

        Raises:
            ValueError: the model goes another way than backbone, then head.
        """
        tower = tower_output(self.model, self._batch(images, cameras))
        if tower is None:
            raise ValueError(
                f"{type(self.model).__name__} has a way of its own from images to features, so no patches can be read"
            )
        return tower

    def _heads(self, tower: CLIPFeatures | Tensor) -> tuple[Tensor, Tensor]:
        """`_raw` of what the backbone gave a head with anchors, and (B, K, h, w) attention."""
        head: Any = self.model.heads
        features = as_features(tower).float()
        refined = head.refine_and_pool(features, keep_tokens=bool(head.parts))
        return head.evaluation_feature(features, refined), refined.anchor_maps(features.grid)
