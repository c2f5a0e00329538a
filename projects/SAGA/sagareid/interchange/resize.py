"""Another input size or patch stride: the position embedding interpolated to the new grid of patches."""

from __future__ import annotations

from collections.abc import Sequence

from ..modeling.clip import towers
from .conversion import Conversion, ConversionError

POSITION = "backbone.visual.positional_embedding"


def source_grid(result: Conversion) -> tuple[tuple[int, int], int] | None:
    """((H, W), stride) that the position embedding was most likely made for, from its length; None if nothing fits."""
    if result.made_for:
        return result.made_for
    patches = result.model[POSITION].shape[0] - 1
    patch = result.model["backbone.visual.conv1.weight"].shape[-1]
    sizes = [(14 * patch, 14 * patch), (16 * patch, 16 * patch)] if result.layout == "clip" else [(256, 128)]
    for size in sizes:
        for stride in (patch, patch * 3 // 4):
            grid = towers.patch_grid(size, patch, stride)
            if grid[0] * grid[1] == patches:
                return size, stride
    return None


def resize(
    result: Conversion,
    *,
    size: Sequence[int] | None = None,
    stride: int | None = None,
    from_size: Sequence[int] | None = None,
    from_stride: int | None = None,
) -> None:
    """Fit a checkpoint of ours to another input size or patch stride, in place.

    Args:
        size: (H, W) wanted; None keeps it.
        stride: patch stride wanted; None keeps it.
        from_size, from_stride: what the checkpoint was made for. By default 256x128 for a ReID model and a square for
            CLIP, if the number of patches agrees.

    Raises:
        ConversionError: a source grid that is unknown or does not have the checkpoint's number of patches.
    """
    embedding = result.model[POSITION]
    patch = result.model["backbone.visual.conv1.weight"].shape[-1]
    patches = embedding.shape[0] - 1
    if from_size is None or from_stride is None:
        guess = source_grid(result)
        if guess is None:
            raise ConversionError(
                f"the position embedding has {patches} patches, which fits no usual input size and stride: state both, "
                "--from-size H W --from-stride S"
            )
        from_size, from_stride = from_size or guess[0], from_stride or guess[1]
    (height, width), stride = size or from_size, stride or from_stride
    for asked in (stride, from_stride):
        if not 1 <= asked <= patch:
            raise ConversionError(f"stride {asked} is not in 1..{patch}, the patch size")
    try:
        source = towers.patch_grid(from_size, patch, from_stride)
        target = towers.patch_grid((height, width), patch, stride)
    except ValueError as error:
        raise ConversionError(str(error)) from error
    named = (
        f"from {from_size[0]}x{from_size[1]} at stride {from_stride} (grid {source[0]}x{source[1]}) "
        f"to {height}x{width} at stride {stride} (grid {target[0]}x{target[1]})"
    )
    if source[0] * source[1] != patches:
        raise ConversionError(
            f"cannot resize {named}: the checkpoint's position embedding has {patches} patches, not "
            f"{source[0] * source[1]}. State what it was made for with --from-size H W --from-stride S"
        )
    result.model[POSITION] = towers.resize_position_embedding(embedding, source, target).clone()
    result.made_for = ((height, width), stride)
    result.notes.append(f"position embedding resized {named}")
