"""Stand-ins for the files of other projects, with their real names and small widths, and what each computes, plainly.

Written from the equations and the names; the sources are named in modeling/foreign. The package uses none of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, HEADS, DEPTH = 32, 2, 3
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of a size at which every part of a model matters."""
    generator = torch.Generator().manual_seed(seed)

    def draw(key: str, shape: tuple[int, ...]) -> Tensor:
        if key.endswith("num_batches_tracked"):
            return torch.tensor(5)
        value = torch.randn(shape, generator=generator)
        if key.endswith("running_var"):
            return 0.5 + value.abs()
        fan = value[0].numel() if value.dim() > 1 else 1
        return value / fan**0.5 if value.dim() > 1 else 1 + 0.3 * value if key.endswith("weight") else 0.3 * value

    return {key: draw(key, shape) for key, shape in shapes.items()}


def norm_shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": () if part == NORM[4] else (channels,) for part in NORM}


# ---- ViT: vit_pytorch.py of TransReID, TransReID-SSL and PersonViT ------------------------------------------------


def block_shapes(prefix: str, width: int = WIDTH) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}{n}.{p}": (width,) for n in ("norm1", "norm2") for p in NORM[:2]}
    for name, out, into in (
        ("attn.qkv", 3 * width, width),
        ("attn.proj", width, width),
        ("mlp.fc1", 4 * width, width),
        ("mlp.fc2", width, 4 * width),
    ):
        shapes |= {f"{prefix}{name}.weight": (out, into), f"{prefix}{name}.bias": (out,)}
    return shapes


def vit_shapes(patches: int, *, stem: bool = False, depth: int = DEPTH) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + patches, WIDTH)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 64 if stem else 3, *([8, 8] if stem else [16, 16]))}
    shapes["patch_embed.proj.bias"] = (WIDTH,)
    if stem:
        conv = "patch_embed.conv."
        shapes |= {
            f"{conv}0.weight": (64, 3, 7, 7),
            f"{conv}3.weight": (64, 64, 3, 3),
            f"{conv}6.weight": (64, 64, 3, 3),
        }
        for i in (1, 4):
            shapes |= {f"{conv}{i}.IN.weight": (32,), f"{conv}{i}.IN.bias": (32,)} | norm_shapes(f"{conv}{i}.BN", 32)
        shapes |= norm_shapes(f"{conv}7", 64)
    for i in range(depth):
        shapes |= block_shapes(f"blocks.{i}.")
    return shapes | {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}


def transreid(patches: int = 8, **options) -> dict[str, Tensor]:
    """A ReID model of build_transformer in make_model.py: tower, its unused classifier, neck, camera embedding."""
    shapes = {f"base.{k}": v for k, v in vit_shapes(patches, **options).items()}
    shapes |= {"base.fc.weight": (1000, WIDTH), "base.fc.bias": (1000,), "classifier.weight": (7, WIDTH)}
    return drawn(shapes | {"base.sie_embed": (6, 1, WIDTH)} | norm_shapes("bottleneck", WIDTH))


def transreid_jpm(patches: int = 8) -> dict[str, Tensor]:
    """build_transformer_local: b1 and b2 are a block and a norm each, four more classifiers and necks."""
    shapes: dict[str, tuple[int, ...]] = {}
    for branch in ("b1", "b2"):
        shapes |= block_shapes(f"{branch}.0.") | {f"{branch}.1.weight": (WIDTH,), f"{branch}.1.bias": (WIDTH,)}
    for i in range(1, 5):
        shapes |= {f"classifier_{i}.weight": (7, WIDTH)} | norm_shapes(f"bottleneck_{i}", WIDTH)
    return transreid(patches) | drawn(shapes, seed=1)


def dino(patches: int = 8) -> dict[str, dict]:
    """What the pre-training of PersonViT and TransReID-SSL leaves: two networks, each a backbone and a head."""
    networks = {}
    for seed, name in enumerate(("student", "teacher")):
        shapes = {f"module.backbone.{k}": v for k, v in vit_shapes(patches).items()}
        shapes |= {"module.backbone.masked_embed": (1, WIDTH), "module.head.mlp.0.weight": (64, WIDTH)}
        networks[name] = drawn(shapes | {"module.head.last_layer.weight_g": (99, 1)}, seed)
    return networks


def hap_pretraining(patches: int = 8) -> dict[str, Tensor]:
    """models_mae_pose.py: a masked autoencoder."""
    shapes = vit_shapes(patches) | block_shapes("decoder_blocks.0.", 16)
    shapes |= {"mask_token": (1, 1, 16), "decoder_pos_embed": (1, 1 + patches, 16), "decoder_embed.weight": (16, WIDTH)}
    shapes |= {"decoder_embed.bias": (16,), "decoder_norm.weight": (16,), "decoder_norm.bias": (16,)}
    return drawn(shapes | {"decoder_pred.weight": (768, 16), "decoder_pred.bias": (768,)})


def hap_lem(patches: int = 8) -> dict[str, Tensor]:
    """models_lem.py of its person_reid: bare names, with a branch of convolutions."""
    shapes = vit_shapes(patches) | {
        "head.weight": (7, WIDTH),
        "head.bias": (7,),
        "conv_head.0.conv1.weight": (16, 32, 1, 1),
    }
    shapes |= norm_shapes("conv_head.0.bn1", 16) | norm_shapes("conv_bn", 64) | norm_shapes("bn", WIDTH)
    return drawn(shapes | {"conv_fc.weight": (7, 64), "conv_fc.bias": (7,), "conv_fc_norm.weight": (64,)})


def attend(x: Tensor, qkv: tuple[Tensor, Tensor], proj: tuple[Tensor, Tensor], heads: int, bias=0.0) -> Tensor:
    """(B, N, D) multi-head self-attention; `bias` joins the scores."""
    batch, rows, width = x.shape
    q, k, v = F.linear(x, *qkv).reshape(batch, rows, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1) * (width // heads) ** -0.5 + bias
    return F.linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, rows, width), *proj)


def pair(state: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return state[f"{name}.weight"], state[f"{name}.bias"]


def vit_block(x: Tensor, s: dict[str, Tensor], name: str) -> Tensor:
    normed = F.layer_norm(x, (WIDTH,), *pair(s, f"{name}.norm1"), eps=1e-6)
    x = x + attend(normed, pair(s, f"{name}.attn.qkv"), pair(s, f"{name}.attn.proj"), HEADS)
    normed = F.layer_norm(x, (WIDTH,), *pair(s, f"{name}.norm2"), eps=1e-6)
    return x + F.linear(F.gelu(F.linear(normed, *pair(s, f"{name}.mlp.fc1"))), *pair(s, f"{name}.mlp.fc2"))


def batch_norm(x: Tensor, s: dict[str, Tensor], name: str) -> Tensor:
    return F.batch_norm(x, s[f"{name}.running_mean"], s[f"{name}.running_var"], *pair(s, name))


def ibn(x: Tensor, s: dict[str, Tensor], name: str) -> Tensor:
    half = x.shape[1] // 2
    first = F.instance_norm(x[:, :half], weight=s[f"{name}.IN.weight"], bias=s[f"{name}.IN.bias"])
    return torch.cat([first, batch_norm(x[:, half:], s, f"{name}.BN")], dim=1)


def vit_feature(
    images: Tensor, s: dict[str, Tensor], *, prefix: str = "", last: tuple[str, str] | None = None
) -> Tensor:
    """(B, D) normed class token. `last`: names of the last block and norm, where they are others."""
    own = {key.removeprefix(prefix): value for key, value in s.items() if key.startswith(prefix)}
    stem = "patch_embed.conv.0.weight" in own
    if stem:
        conv = "patch_embed.conv."
        images = F.relu(ibn(F.conv2d(images, own[f"{conv}0.weight"], stride=2, padding=3), own, f"{conv}1"))
        images = F.relu(ibn(F.conv2d(images, own[f"{conv}3.weight"], padding=1), own, f"{conv}4"))
        images = F.relu(batch_norm(F.conv2d(images, own[f"{conv}6.weight"], padding=1), own, f"{conv}7"))
    patches = F.conv2d(images, *pair(own, "patch_embed.proj"), stride=8 if stem else 16).flatten(2).transpose(1, 2)
    x = torch.cat([own["cls_token"].expand(len(images), -1, -1), patches], dim=1) + own["pos_embed"]
    depth = len([key for key in own if key.startswith("blocks.") and key.endswith("norm1.weight")])
    for i in range(depth - 1):
        x = vit_block(x, own, f"blocks.{i}")
    block, norm = last or (f"{prefix}blocks.{depth - 1}", f"{prefix}norm")
    return F.layer_norm(vit_block(x, s, block)[:, 0], (WIDTH,), *pair(s, norm), eps=1e-6)


# ---- Swin: swin_transformer.py of SOLIDER ------------------------------------------------------------------------

SWIN_WIDTHS, SWIN_HEADS, SWIN_DEPTHS, WINDOW = (16, 32, 64, 128), (1, 2, 4, 8), (2, 2, 2, 2), 7


def swin_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.projection.weight": (16, 3, 4, 4)}
    shapes |= {"patch_embed.projection.bias": (16,), "patch_embed.norm.weight": (16,), "patch_embed.norm.bias": (16,)}
    for stage, (width, heads) in enumerate(zip(SWIN_WIDTHS, SWIN_HEADS)):
        for block in range(SWIN_DEPTHS[stage]):
            name = f"stages.{stage}.blocks.{block}."
            shapes |= {f"{name}{n}.{p}": (width,) for n in ("norm1", "norm2") for p in NORM[:2]}
            shapes |= {f"{name}attn.w_msa.relative_position_bias_table": (169, heads)}
            shapes |= {f"{name}attn.w_msa.relative_position_index": (49, 49)}
            for part, out, into in (
                ("attn.w_msa.qkv", 3 * width, width),
                ("attn.w_msa.proj", width, width),
                ("ffn.layers.0.0", 4 * width, width),
                ("ffn.layers.1", width, 4 * width),
            ):
                shapes |= {f"{name}{part}.weight": (out, into), f"{name}{part}.bias": (out,)}
        if stage < 3:
            name = f"stages.{stage}.downsample."
            shapes |= {f"{name}norm.weight": (4 * width,), f"{name}norm.bias": (4 * width,)}
            shapes[f"{name}reduction.weight"] = (2 * width, 4 * width)
        shapes |= {f"norm{stage}.weight": (width,), f"norm{stage}.bias": (width,)}
        for kind in "wb":  # the last is as wide as the one before it
            wide = SWIN_WIDTHS[min(stage + 1, 3)]
            shapes |= {
                f"semantic_embed_{kind}.{stage}.weight": (wide, 2),
                f"semantic_embed_{kind}.{stage}.bias": (wide,),
            }
    return shapes


def relative_index() -> Tensor:
    """(49, 49) row of the bias table for two places of a window: 13 rows down, 13 columns across, from -6."""
    at = torch.stack(torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij"), -1).reshape(-1, 2)
    offset = at[:, None] - at[None] + WINDOW - 1
    return offset[..., 0] * (2 * WINDOW - 1) + offset[..., 1]


def solider(prefix: str = "base.") -> dict[str, Tensor]:
    shapes = {prefix + k: v for k, v in swin_shapes().items()} | {"classifier.weight": (7, 128)}
    state = drawn(shapes | norm_shapes("bottleneck", 128))
    return {k: relative_index() if k.endswith("relative_position_index") else v for k, v in state.items()}


def windows_of(size: int) -> list[slice]:
    return [slice(start, start + WINDOW) for start in range(0, size, WINDOW)]


def swin_attention(x: Tensor, s: dict[str, Tensor], name: str, heads: int, shift: int) -> Tensor:
    """(B, H, W, C): pad to whole windows, shift, attend within each, shift back, cut."""
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
    regions = torch.zeros(x.shape[1:3])
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
        parts = (slice(0, -WINDOW), slice(-WINDOW, -shift), slice(-shift, None))
        for i, rows in enumerate(parts):
            for j, columns in enumerate(parts):
                regions[rows, columns] = 3 * i + j
    bias = s[f"{name}.relative_position_bias_table"][relative_index()].permute(2, 0, 1)
    out = torch.zeros_like(x)
    for rows in windows_of(x.shape[1]):
        for columns in windows_of(x.shape[2]):
            region = regions[rows, columns].reshape(-1)
            apart = torch.where(region[:, None] != region[None], -100.0, 0.0)
            inside = x[:, rows, columns].flatten(1, 2)
            done = attend(inside, pair(s, f"{name}.qkv"), pair(s, f"{name}.proj"), heads, bias + apart)
            out[:, rows, columns] = done.reshape(len(x), WINDOW, WINDOW, -1)
    out = out.roll((shift, shift), (1, 2)) if shift else out
    return out[:, :height, :width]


def swin_map(images: Tensor, s: dict[str, Tensor], semantic: float) -> Tensor:
    """(B, 128, h, w) map of the last stage behind its norm."""
    x = F.conv2d(images, *pair(s, "patch_embed.projection"), stride=4).permute(0, 2, 3, 1)
    x = F.layer_norm(x, (16,), *pair(s, "patch_embed.norm"))
    control = torch.tensor([semantic, 1 - semantic])
    for stage, (width, heads) in enumerate(zip(SWIN_WIDTHS, SWIN_HEADS)):
        for block in range(SWIN_DEPTHS[stage]):
            name = f"stages.{stage}.blocks.{block}"
            normed = F.layer_norm(x, (width,), *pair(s, f"{name}.norm1"))
            x = x + swin_attention(normed, s, f"{name}.attn.w_msa", heads, 3 if block % 2 else 0)
            normed = F.layer_norm(x, (width,), *pair(s, f"{name}.norm2"))
            x = x + F.linear(
                F.gelu(F.linear(normed, *pair(s, f"{name}.ffn.layers.0.0"))), *pair(s, f"{name}.ffn.layers.1")
            )
        if stage == 3:
            return F.layer_norm(x, (width,), *pair(s, "norm3")).permute(0, 3, 1, 2)
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2)).permute(0, 3, 1, 2)
        size = (x.shape[2] // 2, x.shape[3] // 2)
        merged = F.unfold(x, 2, stride=2).transpose(1, 2)  # channel first, then row, then column
        merged = F.layer_norm(merged, (4 * width,), *pair(s, f"stages.{stage}.downsample.norm"))
        merged = F.linear(merged, s[f"stages.{stage}.downsample.reduction.weight"])
        scale = F.softplus(F.linear(control, *pair(s, f"semantic_embed_w.{stage}")))
        merged = merged * scale + F.linear(control, *pair(s, f"semantic_embed_b.{stage}"))
        x = merged.reshape(len(x), *size, 2 * width)
    raise AssertionError


# ---- torchreid: osnet.py and resnet.py ---------------------------------------------------------------------------


def conv_bn(x: Tensor, s: dict[str, Tensor], name: str, *, relu: bool = True, **options) -> Tensor:
    x = batch_norm(F.conv2d(x, s[f"{name}.conv.weight"], **options), s, f"{name}.bn")
    return F.relu(x) if relu else x


def light(x: Tensor, s: dict[str, Tensor], name: str) -> Tensor:
    x = F.conv2d(F.conv2d(x, s[f"{name}.conv1.weight"]), s[f"{name}.conv2.weight"], padding=1, groups=x.shape[1])
    return F.relu(batch_norm(x, s, f"{name}.bn"))


def osnet_block(x: Tensor, s: dict[str, Tensor], name: str) -> Tensor:
    first, streams = conv_bn(x, s, f"{name}.conv1"), []
    for letter, length in zip("abcd", (1, 2, 3, 4)):
        y = first
        for i in range(length):
            y = light(y, s, f"{name}.conv2{letter}" + ("" if length == 1 else f".{i}"))
        gate = F.relu(F.conv2d(y.mean((2, 3), keepdim=True), *pair(s, f"{name}.gate.fc1")))
        streams.append(y * torch.sigmoid(F.conv2d(gate, *pair(s, f"{name}.gate.fc2"))))
    out = conv_bn(sum(streams), s, f"{name}.conv3", relu=False)
    if f"{name}.downsample.conv.weight" in s:
        x = conv_bn(x, s, f"{name}.downsample", relu=False)
    return F.relu(out + x)


def osnet_map(images: Tensor, s: dict[str, Tensor]) -> Tensor:
    """(B, C, h, w) map of torchreid's OSNet."""
    x = F.max_pool2d(conv_bn(images, s, "conv1", stride=2, padding=3), 3, stride=2, padding=1)
    for stage in ("conv2", "conv3", "conv4"):
        x = osnet_block(osnet_block(x, s, f"{stage}.0"), s, f"{stage}.1")
        if stage != "conv4":
            x = F.avg_pool2d(conv_bn(x, s, f"{stage}.2.0"), 2, stride=2)
    return conv_bn(x, s, "conv5")


def resnet18_map(images: Tensor, s: dict[str, Tensor]) -> Tensor:
    """(B, 512, h, w) map of torchreid's ResNet-18."""
    x = F.relu(batch_norm(F.conv2d(images, s["conv1.weight"], stride=2, padding=3), s, "bn1"))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for layer in range(1, 5):
        for block in range(2):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = F.relu(batch_norm(F.conv2d(x, s[f"{name}.conv1.weight"], stride=stride, padding=1), s, f"{name}.bn1"))
            y = batch_norm(F.conv2d(y, s[f"{name}.conv2.weight"], padding=1), s, f"{name}.bn2")
            if f"{name}.downsample.0.weight" in s:
                x = F.conv2d(x, s[f"{name}.downsample.0.weight"], stride=stride)
                x = batch_norm(x, s, f"{name}.downsample.1")
            x = F.relu(y + x)
    return x
