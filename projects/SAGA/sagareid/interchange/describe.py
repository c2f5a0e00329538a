"""What a converted checkpoint is, in words and in config keys."""

from __future__ import annotations

from ..modeling.foreign import LAYOUTS
from .conversion import Conversion
from .layouts import TITLES, our_structure
from .resize import POSITION, source_grid
from .towers import tower_keys


def describe(result: Conversion) -> str:
    """What a file was recognised as, in one line."""
    titles = TITLES | LAYOUTS
    kept = len(result.published.get("tensors", ()))
    beside = f', {kept} more kept under "published"' if kept else ""
    return f"{result.layout} ({titles[result.layout]}); {len(result.model)} tensors for the model{beside}"


def config_keys(result: Conversion) -> dict[str, object]:
    """Config keys that the weights determine, and a remark (a string in parentheses) for those that they do not."""
    if result.tower is not None:
        return tower_keys(result.tower)
    model = result.model
    width, patch = model["backbone.visual.conv1.weight"].shape[0], model["backbone.visual.conv1.weight"].shape[-1]
    names = {(768, 16): "ViT-B-16", (768, 32): "ViT-B-32", (1024, 14): "ViT-L-14"}
    name = names.get((width, patch))
    if name and result.quick_gelu is not False:
        name = f"{name}-quickgelu" if result.quick_gelu else f"({name} or {name}-quickgelu: the file does not say)"
    keys: dict[str, object] = {
        "MODEL.HEADS.NAME": {"saga": "SAGAHead", "cls": "CLSHead", "prompts": "PromptHead"}[result.head],
        "MODEL.CLIP.NAME": result.clip_name or name or f"(a ViT of width {width} and patch {patch})",
        "MODEL.BACKBONE.FEAT_DIM": width,
    }
    source = source_grid(result)
    if source:
        keys |= {"MODEL.BACKBONE.STRIDE_SIZE": [source[1]] * 2, "INPUT.SIZE_TRAIN": list(source[0])}
        keys["INPUT.SIZE_TEST"] = list(source[0])
    else:
        patches = model[POSITION].shape[0] - 1
        keys["MODEL.BACKBONE.STRIDE_SIZE"] = f"(unknown: {patches} patches; with INPUT.SIZE_TRAIN and SIZE_TEST)"
    has_cameras = "backbone.camera_embedding" in model
    keys["MODEL.CLIP.SIE_CAMERA"] = has_cameras
    if has_cameras:
        keys["MODEL.CLIP.CAMERAS"] = f"({len(model['backbone.camera_embedding'])} names)"
        keys["MODEL.BACKBONE.SIE_COE"] = "(not stored; published: 3.0 in SAGA-ReID, 1.0 in CLIP-ReID)"
    for key in ("heads.classifier.weight", "heads.classifiers.0.weight", "heads.prompts.context_identity"):
        if key in model:
            keys["MODEL.HEADS.NUM_CLASSES"] = model[key].shape[0]
    if result.layout == "clip_reid":
        keys["MODEL.HEADS.TRAIN_PROJ"] = True
    return keys | _saga_keys(result, width) if result.head == "saga" else keys


def _saga_keys(result: Conversion, width: int) -> dict[str, object]:
    """Config keys of SAGAHead that its weights determine, and remarks for the others."""
    model, structure = result.model, our_structure("saga3", "saga", result.model)
    published = "9; 11 without phrase context" if structure.paths == 1 else "6 and 9"
    keys: dict[str, object] = {
        "MODEL.CLIP.TOKEN_LAYERS": f"({structure.paths}; not stored which. Published: {published})",
        "MODEL.SAGA.FREE_ANCHORS": structure.free_anchors,
    }
    if structure.free_anchors:
        keys["MODEL.SAGA.NUM_ANCHORS"] = model["heads.text_anchors.anchors"].shape[0]
    else:
        count, phrase = model["heads.text_anchors.context_phrase"].shape[:2]
        keys |= {"MODEL.SAGA.NUM_ANCHORS": count, "MODEL.SAGA.PHRASE_CONTEXT": phrase}
    domain_anchors = 0
    if structure.domain == "clip":
        domain_anchors = model["heads.domain_anchors.queries"].shape[0]
    elif structure.domain:
        domain_anchors = model["heads.domain_anchors.generator.2.bias"].shape[0] // width
    keys["MODEL.SAGA.NUM_DOMAIN_ANCHORS"] = domain_anchors
    if structure.domain:
        keys["MODEL.SAGA.DOMAIN_ANCHORS"] = structure.domain
    if structure.domain == "camera":
        keys["MODEL.CLIP.CAMERAS"] = f"({len(model['heads.domain_anchors.camera.weight'])} names)"
    keys["MODEL.SAGA.REFINE_LAYERS"] = structure.refine_layers
    keys["MODEL.SAGA.NUM_HEADS"] = "(not stored; published: 8)"
    keys["MODEL.SAGA.NUM_CLASSIFIERS"] = structure.classifiers
    if structure.projection:
        keys["MODEL.SAGA.EMBEDDING_DIM"] = model["heads.proj.weight"].shape[0]
    return keys
