"""One thread that embeds and searches for all requests, as many at a time as are waiting.

n images of a batch, (h, w) patch grid.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from ..deploy.extractor import Extractor
from ..deploy.gallery import Gallery, Hit
from ..deploy.prepare import Prepare
from ..structures import as_features

__all__ = ["Busy", "Found", "Searcher"]

logger = logging.getLogger(__name__)

BATCH = 16  # requests that are embedded at once
WAITING = 256  # requests that may wait; more are told to come again


class Busy(RuntimeError):
    """More requests wait than may."""


@dataclass
class Found:
    """What a request gave.

    Attributes:
        hits: the most similar images, the best first.
        visibility: share of the person that is seen, 0..1; None where the run has no read-out.
        attention: (h, w) weight of each patch in the pooled feature, 1 in sum; None where it was not asked for, or the
            head has none.
    """

    hits: list[Hit]
    visibility: float | None
    attention: list[list[float]] | None


@dataclass
class _Job:
    image: Image.Image
    k: int
    where: str
    attention: bool
    future: Future[Found] = field(default_factory=Future)


class Searcher:
    """Embeds images and searches a gallery for them, in a thread of its own.

    Whatever a request needs of the model and the gallery happens in that thread, so that neither needs to be shared,
    and requests that wait together are embedded together.
    """

    def __init__(self, gallery: Gallery, extractor: Extractor):
        self.gallery, self.extractor = gallery, extractor
        try:
            _ = extractor.readout
            self.visibility = True
        except FileNotFoundError:  # no read-out; a damaged one, or of another model, is an error
            self.visibility = False
        self._prepare = Prepare(extractor.cfg, extractor.size)
        self._jobs: queue.Queue[_Job | None] = queue.Queue(WAITING)
        self._using = threading.Lock()  # of the gallery
        self._thread = threading.Thread(target=self._work, name="search", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread after what waits by now."""
        self._jobs.put(None)
        self._thread.join()

    def submit(self, image: Image.Image, *, k: int = 0, where: str = "", attention: bool = False) -> Future[Found]:
        """Ask for the k most similar images that pass a filter; 0: none, only what the image itself gives.

        The future raises ValueError where the filter is none.

        Raises:
            Busy: `WAITING` requests wait already.
        """
        job = _Job(image, k, where, attention)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Busy(f"{WAITING} requests wait already; ask again in a moment") from None
        return job.future

    def get(self, name: str) -> Hit | None:
        """The gallery's image of an id."""
        with self._using:
            return self.gallery.get([name])[0]

    def describe(self) -> dict[str, Any]:
        with self._using:
            return self.gallery.describe()

    # ---- in the thread -----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs, end = [job], False
            while len(jobs) < BATCH and not end:
                try:
                    more = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    end = True
                else:
                    jobs.append(more)
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            try:
                if jobs:
                    self._answer(jobs)
            except BaseException as error:  # of the model: the requests learn of it, and the thread goes on
                logger.exception("a batch of %d requests failed", len(jobs))
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(error)
            if end:
                return

    def _answer(self, jobs: Sequence[_Job]) -> None:
        [batch] = self.extractor.iterate([job.image for job in jobs], batch_size=len(jobs), visibility=self.visibility)
        if batch.unreadable:  # they were decoded before
            raise RuntimeError(next(iter(batch.unreadable.values())))
        shares = [None] * len(jobs) if batch.visibility is None else batch.visibility.crop.tolist()
        wanted = [i for i, job in enumerate(jobs) if job.attention]
        maps = dict(zip(wanted, self._attention([jobs[i].image for i in wanted]))) if wanted else {}
        asked: dict[tuple[int, str], list[int]] = {}
        for i, job in enumerate(jobs):
            asked.setdefault((job.k, job.where), []).append(i)
        for (k, where), places in asked.items():
            try:
                hits = self._query(batch.features[places], k, where) if k else [[] for _ in places]
            except Exception as error:
                for i in places:
                    jobs[i].future.set_exception(error)
                continue
            for i, found in zip(places, hits):
                jobs[i].future.set_result(Found(found, shares[i], maps.get(i)))

    def _query(self, features: torch.Tensor, k: int, where: str) -> list[list[Hit]]:
        with self._using:
            return self.gallery.query(features.numpy(), k, where=where)

    def _attention(self, images: Sequence[Image.Image]) -> list[list[list[float]] | None]:
        head = self.extractor.head
        if not hasattr(head, "token_weights"):
            return [None] * len(images)
        tower = self.extractor.tower(torch.stack([self._prepare(image, i) for i, image in enumerate(images)]))
        with torch.inference_mode():
            weights = head.token_weights(tower).float().cpu()
        return weights.unflatten(1, as_features(tower).grid).tolist()
