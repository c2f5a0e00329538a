"""Galleries: features of images with what is known of them, kept for years, searched, filtered and forgotten.

    from sagareid.deploy import gallery

    crops = gallery.open_gallery("index")                     # or "milvus:people.db"
    crops.query(features, 10, where="camera in (3, 4) and time between 8:00 and 9:00")
    crops.add(batches); crops.count("camera == 3"); crops.delete(where="track == 17"); crops.describe()
    crops.expire(datetime.timedelta(days=30))

`base.Gallery` is the interface; `filters` has the language of `where`, `columns` the kinds of columns; `faiss_engine`
(a folder) and `milvus_engine` (a file, or a server) are the engines, one registered class each; `ingest` brings in what
tools/extract.py wrote, `lists` makes ranked lists of what was found.
"""

from ..feature_set import FeatureSet
from .base import (
    Added,
    Batch,
    Gallery,
    Hit,
    Measurable,
    Model,
    create,
    engines,
    open_gallery,
    register_engine,
    split,
)
from .ingest import add, build
from .lists import answers, feature_queries, image_queries, matches, summary

__all__ = [
    "Added",
    "Batch",
    "FeatureSet",
    "Gallery",
    "Hit",
    "Measurable",
    "Model",
    "add",
    "answers",
    "build",
    "create",
    "engines",
    "feature_queries",
    "image_queries",
    "matches",
    "open_gallery",
    "register_engine",
    "split",
    "summary",
]
