"""What the benchmarks can be asked for. C identities, Q queries, G gallery images.

Imports neither torch nor FastReID, so that --help is quick.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..synthetic.options import Spec

__all__ = [
    "CASES",
    "FORMS",
    "GPU_STEPS",
    "RANKING_SIZES",
    "SCALES",
    "SIZES",
    "SMOKE",
    "SPREADS",
    "RankingSize",
    "Scale",
    "Size",
]

# What is timed; `steps` has one function for each.
CASES = ("prompts", "backbone", "anchors_cached", "anchors_live", "extraction", "bfloat16", "memory", "loading")
# Each form of `modeling.fast`, and the cases of `CASES` in which it acts.
FORMS = {
    "refinement": ("anchors_cached",),
    "absorption": ("anchors_cached",),
    "dropout": ("anchors_cached",),
    "early_pooling": ("extraction",),
    "groups": ("extraction", "anchors_cached"),
    "one_row": ("extraction", "prompts", "backbone"),
    "attention": ("extraction", "prompts", "backbone"),
    "quick_gelu": ("extraction", "prompts", "backbone"),
    "each_once": ("prompts",),
}
# What is checked on a GPU, in this order; `gpu.steps` has one function for each.
GPU_STEPS = (
    *("device", "models", "tests", "quickstart", "processes", "export"),
    *("base", "large", "loading", "ranking", "compile"),
)


@dataclass(frozen=True)
class Size:
    """What is measured at one size.

    Attributes:
        config: file under configs/SAGA whose stages are measured. opts: KEY, VALUE on top of it.
        identities, images: C, and training images of an identity.
        batch: of the prompt and anchor steps. backbone_batch, extraction_batch: of these two.
        memory_batches: of the training steps whose memory is measured.
        loading_images: least number of test images drawn to measure loading.
        rounds: of each case, where the command names none.
        targets: least ratio of a case on 2 cores in float32.
    """

    config: str
    opts: tuple = ()
    identities: int = 702
    images: int = 22
    batch: int = 64
    backbone_batch: int = 64
    extraction_batch: int = 64
    memory_batches: tuple[int, ...] = (16, 64)
    loading_images: int = 128
    rounds: int = 5
    matmul_sizes: tuple[int, ...] = (512, 1024, 2048, 4096)
    targets: tuple[tuple[str, float], ...] = ()


_TARGETS = (("prompts", 3.5), ("anchors_cached", 2.0), ("extraction", 1.3))
SIZES = {
    "tiny": Size(
        "quickstart.yml",
        identities=400,
        images=12,
        loading_images=1024,
        rounds=15,
        targets=_TARGETS,
    ),
    "base": Size("occ_duke.yml", backbone_batch=16, extraction_batch=32, targets=_TARGETS),
    "large": Size(
        "occ_duke.yml",
        ("MODEL.CLIP.NAME", "ViT-L-14-quickgelu", "MODEL.BACKBONE.FEAT_DIM", 1024, "MODEL.CLIP.TOKEN_LAYERS", "[18]"),
        backbone_batch=4,
        extraction_batch=8,
        rounds=3,
        targets=_TARGETS,
    ),
}
# The code paths of every case in seconds, for tests: what it prints as times means nothing.
SMOKE = Size(
    "quickstart.yml",
    identities=6,
    images=4,
    batch=8,
    backbone_batch=8,
    extraction_batch=4,
    memory_batches=(4, 8),
    loading_images=32,
    rounds=2,
    matmul_sizes=(64, 96),
    targets=(("prompts", 0.0),),
)


@dataclass(frozen=True)
class RankingSize:
    """Q x G, written "QxG"."""

    queries: int
    gallery: int

    @classmethod
    def parse(cls, text: str) -> RankingSize:
        """
        Raises:
            ValueError: not two positive numbers with an x between them.
        """
        parts = text.split("x")
        if len(parts) != 2 or not all(p.isdigit() and int(p) for p in parts):
            raise ValueError(f"{text!r} is no size; expected queries x gallery images, such as 3368x15913")
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return f"{self.queries}x{self.gallery}"


# the last two: Market-1501 (without its junk) and MSMT17
RANKING_SIZES = tuple(RankingSize(*s) for s in ((1000, 10000), (3368, 15913), (11659, 82161)))
# How far images lie around their person, over the spread of people, in the features that are ranked. "close": as a
# trained model has them. "chance": matches stand among everybody, where most distances are equal to another's.
SPREADS = {"close": 3.5, "chance": 7.0}


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        models: name -> sizes of the training and extraction steps.
        rounds: pairs of samples of a case.
        peak: side of the square matrix product whose rate is the peak.
        ranking: queries, gallery images, feature width. ranking_checked: queries that the CPU ranks, too.
        people: training identities drawn for the loaders, of 12 images each.
        quick_start: what is drawn; None: the quick start's own data set. options: KEY, VALUE for its stages.
        steps: training steps of stage 2 to time with the real loader.
        backbones: of `BACKBONES`. compiled: cases to compile. loader_size: (H, W) of the images drawn for the loaders.
    """

    models: dict[str, Size]
    rounds: int
    peak: int
    ranking: tuple[int, int, int]
    ranking_checked: int
    people: int
    quick_start: Spec | None
    options: tuple = ()
    steps: int = 40
    backbones: tuple[str, ...] = ("CLIP", "CLIP, map", "ResNet-18", "ViT")
    compiled: tuple[str, ...] = ("prompts", "anchors_cached", "extraction", "backbone")
    loader_size: tuple[int, int] = (256, 128)


_LARGE = SIZES["large"].opts
SCALES = {
    "full": Scale(
        {
            "base": Size("occ_duke.yml", backbone_batch=64, extraction_batch=256),
            "large": Size("occ_duke.yml", _LARGE, backbone_batch=64, extraction_batch=256),
        },
        rounds=5,
        peak=8192,
        ranking=(11659, 82161, 2048),
        ranking_checked=300,
        people=400,
        quick_start=None,
        options=("DATALOADER.NUM_WORKERS", 4),
    ),
    "tiny": Scale(
        {"base": replace(SMOKE, identities=8)},
        rounds=1,
        peak=128,
        ranking=(40, 300, 32),
        ranking_checked=40,
        people=20,
        quick_start=Spec(train_ids=12, test_ids=8, validation_ids=4, gallery_distractors=40, cutouts=4),
        options=(
            *("SOLVER.MAX_EPOCH", 2, "SOLVER.IMS_PER_BATCH", 16, "DATALOADER.NUM_WORKERS", 0, "CACHE.NUM_VIEWS", 2),
            *("INPUT.SIZE_TRAIN", "[48,24]", "INPUT.SIZE_TEST", "[48,24]"),
        ),
        steps=2,
        backbones=("CLIP", "CLIP, map", "ResNet-18"),
        compiled=("prompts", "extraction"),
        loader_size=(48, 24),
    ),
}
