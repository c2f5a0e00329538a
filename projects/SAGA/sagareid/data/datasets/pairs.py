"""Small test sets of people paired by name: a hidden or partial view as query, a whole one as gallery."""

from __future__ import annotations

from fastreid.data.datasets import DATASET_REGISTRY

from .layout import PairedByName, Statistics

__all__ = ["OccludedREID", "PartialREID", "PartialiLIDS"]


@DATASET_REGISTRY.register()
class OccludedREID(PairedByName):
    """Occluded-REID: 200 people, five occluded and five whole-body images of each.

    Source: Zhuo et al., Occluded Person Re-identification, ICME 2018
    (github.com/tinajia2012/ICME2018_Occluded-Person-Reidentification_datasets). Terms: research use.
    Statistics: 1,000 queries and 1,000 gallery images of 200 people; no training set (usual: Market1501).
    Folders: ``<root>/Occluded_REID/{occluded_body_images,whole_body_images}/<person>/*.tif``.

    Occluded images are camera 0, whole ones camera 1; a person has the same number in both, by the folder's name.

    Raises:
        RuntimeError: a folder is missing or empty, or a file is wrongly placed.
    """

    statistics: Statistics = {"query": (1_000, 200, 1), "gallery": (1_000, 200, 1)}
    folders = ("Occluded_REID", "Occluded-REID", "OccludedREID", "occluded_reid")
    splits = (("occluded_body_images", "query"), ("whole_body_images", "gallery"))


@DATASET_REGISTRY.register()
class PartialREID(PairedByName):
    """Partial-REID: 60 people, five partial and five whole-body images of each.

    Source: Zheng et al., Partial Person Re-identification, ICCV 2015. Terms: research use.
    Statistics: 300 queries and 300 gallery images of 60 people; no training set (usual: Market1501).
    Folders: ``<root>/Partial_REID/{partial_body_images,whole_body_images}/001_001.jpg``.

    Raises:
        RuntimeError: a folder is missing or empty, or a file is wrongly named.
    """

    statistics: Statistics = {"query": (300, 60, 1), "gallery": (300, 60, 1)}
    folders = ("Partial_REID", "Partial-REID_Dataset", "Partial-REID", "PartialREID", "partial_reid")
    splits = (("partial_body_images", "query"), ("whole_body_images", "gallery"))


@DATASET_REGISTRY.register()
class PartialiLIDS(PairedByName):
    """Partial-iLIDS: 119 people in an airport, one partial and one whole image of each.

    Source: He et al., Deep Spatial Feature Reconstruction for Partial Person Re-identification, CVPR 2018, cropped from
    i-LIDS (Zheng, Gong and Xiang, CVPR 2011). Terms: research use; those of i-LIDS apply.
    Statistics: 119 queries and 119 gallery images of 119 people; no training set (usual: Market1501).
    Folders: ``<root>/PartialiLIDS/{Probe,Gallery}/001.jpg`` (also ``query``, ``gallery``).

    Raises:
        RuntimeError: a folder is missing or empty, or a file is wrongly named.
    """

    statistics: Statistics = {"query": (119, 119, 1), "gallery": (119, 119, 1)}
    folders = ("PartialiLIDS", "Partial_iLIDS", "Partial-iLIDS", "PartialILIDS", "partial_ilids")
    splits = (("Probe", "query"), ("Gallery", "gallery"))
