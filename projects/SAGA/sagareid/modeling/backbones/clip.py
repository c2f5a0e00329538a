"""CLIP's image tower as a FastReID backbone: the modules of open_clip's VisionTransformer, run block by block.

B images, (H, W) image, (h, w) patch grid, N=h*w, D width, E joint width, P token layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastreid.modeling.backbones import BACKBONE_REGISTRY

from ...structures import BlockWeights, CLIPFeatures
from ...values import one_of
from .. import fast
from ..clip import towers
from ..fast.blocks import block_at_row, in_groups
from . import clip_others
from .tower import OUTPUTS, ImageTower, crop_problem, layers_problem

__all__ = ["CLIPBackbone", "build_clip_vit_backbone"]


class CLIPBackbone(ImageTower):
    """An open_clip ViT of any image size and patch stride that returns tokens of chosen blocks beside CLIP's own
    outputs."""

    def __init__(
        self,
        *,
        visual: nn.Module,
        token_layers: Sequence[int],
        output: str,
        num_cameras: int = 0,
        sie_coe: float = 0.0,
        grad_checkpointing: bool = False,
    ):
        """
        Args:
            visual: open_clip VisionTransformer.
            token_layers: blocks, 1-based, clamped to 1..depth; sorted, doubles dropped.
            output: one of `OUTPUTS`.
            num_cameras: 0 for no camera embedding (SIE).
            sie_coe: factor of the camera embedding.
        """
        super().__init__(depth=len(visual.transformer.resblocks), token_layers=token_layers, output=output)
        self.visual = visual
        self.sie_coe = sie_coe
        self.camera_embedding = None
        if num_cameras:
            self.camera_embedding = nn.Parameter(torch.empty(num_cameras, visual.positional_embedding.shape[1]))
            nn.init.trunc_normal_(self.camera_embedding, std=0.02)
        self.grad_checkpointing = grad_checkpointing

    @property
    def grid(self) -> tuple[int, int]:
        return self.visual.grid_size

    @property
    def image_size(self) -> tuple[int, int]:
        return tuple(self.visual.image_size)

    def block(self, number: int) -> nn.Module:
        """Transformer block by 1-based number, clamped to the depth."""
        return self.visual.transformer.resblocks[min(max(number, 1), self.depth) - 1]

    def block_weights(self, number: int) -> BlockWeights:
        block = self.block(number)
        mlp = {"0": block.mlp.c_fc, "3": block.mlp.c_proj}
        return BlockWeights(
            attention=block.attn.state_dict(),
            norm_1=block.ln_1.state_dict(),
            feed_forward={f"{place}.{k}": v for place, linear in mlp.items() for k, v in linear.state_dict().items()},
            norm_2=block.ln_2.state_dict(),
        )

    def unread(self, outputs: Collection[str]) -> list[nn.Parameter]:
        if "proj" in outputs:
            return []
        parameters = [self.visual.proj]
        if "cls" in outputs:
            return parameters
        if not outputs:
            return list(self.parameters())
        behind = [self.block(number) for number in range(self.token_layers[-1] + 1, self.depth + 1)]
        return parameters + [p for m in (self.visual.ln_post, *behind) for p in m.parameters()]

    def _camera_shift(self, camids: Tensor | None) -> Tensor | None:
        """(B, D) shift of the class token, (1, D) of one camera for all; the mean embedding for an unknown camera (<
        0)."""
        if self.camera_embedding is None:
            return None
        table = self.camera_embedding
        if camids is None:  # as of one that training never saw
            return self.sie_coe * table.mean(0, keepdim=True)
        return self.sie_coe * torch.where((camids >= 0)[:, None], table[camids.clamp(min=0)], table.mean(0))

    def forward(self, images: Tensor, camids: Tensor | None = None) -> CLIPFeatures | Tensor:
        """
        Args:
            images: (B, 3, H, W), (x/255 - mean) / std.
            camids: (B,) indices of training cameras, negative for unknown; None: all are. Used with a camera embedding
                only.

        Returns:
            CLIPFeatures, (B, P*D, h, w) patch tokens of the token layers, or (B, D, 1, 1) class token, by `output`.

        Raises:
            ValueError: an image size other than the tower was built for.
        """
        self.check_size(images)
        rows = 1 + self.grid[0] * self.grid[1]
        patches, layer_cls, cls = in_groups(self._tower, rows, images, camids, whole=torch.is_grad_enabled())
        proj = cls @ self.visual.proj if self.output == "tokens" else None
        return self.as_output(patches, self.grid, cls=cls, proj=proj, layer_cls=layer_cls)

    def _tower(self, images: Tensor, camids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, P*N, D) patch tokens and (B, P, D) class tokens of the token layers, (B, D) normed class token of the
        last."""
        one_row = fast.enabled("one_row") and self.depth not in self.token_layers
        x, kept = self._embed(images, self._camera_shift(camids)), {}
        for number in range(1, self.depth if one_row else self.depth + 1):
            x = self._through(self.block(number), x)
            if number in self.token_layers:
                kept[number] = x
        patches = torch.cat([kept[number][:, 1:] for number in self.token_layers], dim=1)
        layer_cls = torch.cat([kept[number][:, :1] for number in self.token_layers], dim=1)
        cls = block_at_row(self.block(self.depth), x, 0) if one_row else x[:, 0]
        return patches, layer_cls, self.visual.ln_post(cls)

    def _through(self, block: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing else block(x)

    def _embed(self, images: Tensor, shift: Tensor | None) -> Tensor:
        """(B, 1+N, D) what the blocks start from; `shift` (B, D) joins the class token in front of ln_pre.

        In float32 under autocast, too, and so the residual stream: half precision there costs accuracy, and little
        time.
        """
        visual = self.visual
        patches = visual.conv1(images).float().flatten(2).transpose(1, 2)
        cls = visual.class_embedding.expand(images.shape[0], 1, -1)
        x = torch.cat([cls, patches], dim=1) + visual.positional_embedding
        if shift is not None:
            x = torch.cat([x[:, :1] + shift[:, None], x[:, 1:]], dim=1)
        return visual.ln_pre(x)


def _misfits(cfg) -> Iterator[str]:
    """What keeps a tower from being built, a sentence each."""
    name, size = cfg.MODEL.CLIP.NAME, tuple(cfg.INPUT.SIZE_TRAIN)
    try:
        dims = towers.clip_dims(name)
    except ValueError as error:
        yield str(error)
        return
    if dims.kind != "vit":
        yield from clip_others.misfits(cfg, dims.kind)
        return
    if tuple(cfg.INPUT.SIZE_TEST) != size:
        yield (
            f"INPUT.SIZE_TEST {tuple(cfg.INPUT.SIZE_TEST)} differs from SIZE_TRAIN {size}: the position embedding of "
            "a ViT has one size"
        )
    yield from layers_problem(cfg, dims.layers)
    width = dims.width * (len(set(cfg.MODEL.CLIP.TOKEN_LAYERS)) if cfg.MODEL.BACKBONE.OUTPUT == "map" else 1)
    if width != cfg.MODEL.BACKBONE.FEAT_DIM:
        yield f"MODEL.BACKBONE.FEAT_DIM is {cfg.MODEL.BACKBONE.FEAT_DIM}; {name} gives {width}: set it"


def _check(cfg) -> Iterator[str]:
    """What keeps a run with the tower from working, a sentence each."""
    if cfg.MODEL.CLIP.PRETRAIN_PATH:
        yield (
            "MODEL.CLIP.PRETRAIN_PATH is for backbones that are not CLIP's; both of CLIP's towers come from "
            "MODEL.BACKBONE.PRETRAIN_PATH: leave it empty"
        )
    yield from one_of(cfg, "MODEL.BACKBONE.OUTPUT", OUTPUTS)
    misfits = list(_misfits(cfg))
    yield from misfits
    if misfits or towers.clip_dims(cfg.MODEL.CLIP.NAME).kind != "vit":
        return
    patch, stride, size = (
        towers.clip_dims(cfg.MODEL.CLIP.NAME).patch_size,
        tuple(cfg.MODEL.BACKBONE.STRIDE_SIZE),
        list(cfg.INPUT.SIZE_TRAIN),
    )
    if len(set(stride)) > 1 or stride[0] > patch:
        yield f"MODEL.BACKBONE.STRIDE_SIZE is {stride}; expected one number twice, of 1 to {patch}, the size of a patch"
    # A size need be no multiple of a patch: the published recipe's stride leaves four columns in no patch, too.
    if any(side < patch for side in size):
        yield (
            f"INPUT.SIZE_TRAIN and SIZE_TEST are {size}; expected at least {patch} each, the size of a patch of "
            f"{cfg.MODEL.CLIP.NAME}"
        )
    yield from crop_problem(cfg)


@BACKBONE_REGISTRY.register()
def build_clip_vit_backbone(cfg) -> ImageTower:
    """CLIP's image tower by `MODEL.CLIP.NAME`, `MODEL.BACKBONE.*` and `INPUT.SIZE_TRAIN`: a ViT, or what else open_clip
    has by that name (`clip_others`).

    Raises:
        ValueError: a name, size, stride or width that does not fit.
        FileNotFoundError: PRETRAIN without reachable weights.
    """
    name, size = cfg.MODEL.CLIP.NAME, tuple(cfg.INPUT.SIZE_TRAIN)
    for misfit in _misfits(cfg):
        raise ValueError(misfit)
    kind = towers.clip_dims(name).kind
    if kind != "vit":
        return clip_others.OTHERS[kind].build(cfg)
    visual = towers.build_vision_tower(name, size, cfg.MODEL.BACKBONE.STRIDE_SIZE[0])
    if cfg.MODEL.BACKBONE.PRETRAIN:
        towers.load_vision_tower(visual, towers.read_clip_weights(name, cfg.MODEL.BACKBONE.PRETRAIN_PATH), name)
    return CLIPBackbone(
        visual=visual,
        token_layers=cfg.MODEL.CLIP.TOKEN_LAYERS,
        output=cfg.MODEL.BACKBONE.OUTPUT,
        num_cameras=len(cfg.MODEL.CLIP.CAMERAS) if cfg.MODEL.CLIP.SIE_CAMERA else 0,
        sie_coe=cfg.MODEL.BACKBONE.SIE_COE,
        grad_checkpointing=cfg.MODEL.BACKBONE.GRAD_CHECKPOINT,
    )


def _widths(cfg) -> dict[str, int]:
    """Widths of what it gives beside patch tokens."""
    dims = towers.clip_dims(cfg.MODEL.CLIP.NAME)
    cls = dims.width if dims.kind == "vit" else clip_others.OTHERS[dims.kind].dims(cfg).pooled
    return {"cls": cls, "proj": dims.embed_dim}


# a function, so what it says of itself are attributes of it
build_clip_vit_backbone.check = _check
build_clip_vit_backbone.gives = ("cls", "proj")
build_clip_vit_backbone.widths = _widths
