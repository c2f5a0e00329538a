"""The routes of the page's server, and what an answer holds (OpenAPI at /api/openapi.json).

Times are UTC, as the gallery has them.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import math
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from PIL import Image
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from ..deploy.boxes import crop_boxes
from ..deploy.gallery import Hit
from ..deploy.threshold import Threshold
from ..files import DamagedFile
from ..version import __version__
from . import images
from .guard import Guard
from .options import MAX_MATCHES, Limits
from .search import Busy, Searcher

__all__ = ["Answer", "GalleryInfo", "Look", "Match", "create_app"]

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parents[1] / "assets" / "serve"
FILES = {
    "": ("index.html", "text/html"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    "page.js": ("page.js", "text/javascript"),
    "page.css": ("page.css", "text/css"),
}
UPLOADS, DECODING = 64, 4  # that are held, and decoded, at a time, so that memory stays bounded
PATIENCE = 30.0  # seconds for an upload to arrive
CLOCK = r"^([01]?\d|2[0-3]):[0-5]\d(:[0-5]\d)?$"


# ---- what an answer holds ------------------------------------------------------------------------------------------


class Match(BaseModel):
    """One image of the gallery."""

    id: str
    rank: int = Field(ge=1)
    similarity: float = Field(description="cosine, -1..1")
    same_person: bool | None = Field(description="whether it reaches the threshold; null where none is set")
    camera: str | None
    time: dt.datetime | None
    track: str | None
    visibility: float | None = Field(description="share of the person that is seen, 0..1, where the gallery has it")
    values: dict[str, str | int | float | bool | None] = Field(description="further columns of the gallery")


class Answer(BaseModel):
    """What a query found."""

    nobody: bool | None = Field(description="whether no match reaches the threshold; null where none is set")
    threshold: float | None
    visibility: float | None = Field(description="share of the person that is seen in the query, 0..1")
    attention: list[list[float]] | None = Field(
        description="weight of each patch of the query in its feature, row by row, 1 in sum; null where it was not "
        "asked for or the model has none"
    )
    width: int = Field(description="of the query's crop, pixels")
    height: int = Field(description="of the query's crop, pixels")
    matches: list[Match]


class Look(BaseModel):
    """Where the model looks in an image of the gallery, and how much of the person is seen."""

    attention: list[list[float]] | None
    visibility: float | None


class GalleryInfo(BaseModel):
    """The gallery, the model and the limits."""

    images: int
    columns: dict[str, str]
    feature: str
    threshold: float | None
    threshold_source: str
    visibility: bool = Field(description="whether the model says how much of a query is seen")
    formats: list[str]
    max_bytes: int
    max_pixels: int
    max_matches: int


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


# ---- filters -------------------------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    """A text as a filter of the gallery reads it."""
    return "'" + re.sub(r"([\\'])", r"\\\1", text) + "'"


def filter_of(
    cameras: Iterable[str],
    after: dt.datetime | None,
    before: dt.datetime | None,
    from_clock: str | None,
    to_clock: str | None,
    where: str,
) -> str:
    """What the form asks for as one filter of the gallery (`deploy.gallery.filters`).

    Raises:
        ValueError: one end of a time of day without the other, or a time that has none in UTC.
    """
    parts = []
    if names := ", ".join(map(quoted, cameras)):
        parts.append(f"camera in ({names})")
    for moment, op in ((after, ">="), (before, "<=")):
        if moment is not None:
            parts.append(f"time {op} {_utc(moment)}")
    if (from_clock is None) != (to_clock is None):
        raise ValueError("a time of day takes both from_clock and to_clock")
    if from_clock is not None:
        parts.append(f"time between {from_clock} and {to_clock}")
    if where.strip():
        parts.append(f"({where})")
    return " and ".join(parts)


def _utc(moment: dt.datetime) -> str:
    try:
        moment = moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
    except OverflowError as error:
        raise ValueError(f"{moment} has no time in UTC") from error
    return moment.isoformat()


# ---- the app -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _State:
    searcher: Searcher
    threshold: Threshold | None
    limits: Limits
    folder: str
    uploads: asyncio.Semaphore
    decoding: asyncio.Semaphore


def create_app(
    searcher: Searcher,
    *,
    folder: str,
    threshold: Threshold | None = None,
    token: str = "",
    names: Iterable[str] = (),
    limits: Limits | None = None,
) -> FastAPI:
    """The page and its API.

    Args:
        folder: of the gallery's images; nothing outside it is sent. "": no image is.
        threshold: from which similarity on a match is called the same person; None: nothing is said of that.
        token: that /api asks for; "": none. names: hosts beside IP addresses and localhost; see `guard`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(searcher.close)

    app = FastAPI(
        title="SAGA-ReID gallery",
        version=__version__,
        openapi_url="/api/openapi.json",
        docs_url=None,  # their pages come from a CDN
        redoc_url=None,
        lifespan=lifespan,
    )
    slots = asyncio.Semaphore(UPLOADS), asyncio.Semaphore(DECODING)
    app.state.own = _State(searcher, threshold, limits or Limits(), folder, *slots)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(Guard, token=token, names=names)
    _add_page(app)
    _add_api(app)
    return app


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """What a request lacks, in a line."""
    assert isinstance(error, RequestValidationError)
    found = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
    return JSONResponse({"detail": "; ".join(found)}, 422)


def _add_page(app: FastAPI) -> None:
    def add(name: str, file: str, kind: str) -> None:
        async def page() -> FileResponse:
            return FileResponse(PAGE / file, media_type=kind)

        app.add_api_route(f"/{name}", page, include_in_schema=False)

    for name, (file, kind) in FILES.items():
        add(name, file, kind)


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "A token is needed."},
    403: {"model": Problem, "description": "Another site's page asks."},
    404: {"model": Problem, "description": "The gallery has no such image, or its file is not there."},
    413: {"model": Problem, "description": "Too many bytes or pixels."},
    415: {"model": Problem, "description": "No whole image of a known format."},
    421: {"model": Problem, "description": "The server has another name."},
    422: {"model": Problem, "description": "A parameter or a filter is wrong."},
    503: {"model": Problem, "description": "Too many requests wait."},
}


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: _PROBLEMS[code] for code in (401, 403, 421, *codes)}


_BODY = {
    "requestBody": {
        "required": True,
        "description": "An image file: a crop of a person, or a frame with `box`.",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in images.FORMATS.values()},
    }
}
Id = Annotated[str, Query(min_length=1, max_length=4096, description="an image's id, as a match has it")]
ClockTime = Annotated[str | None, Query(pattern=CLOCK, description="time of day, UTC, such as 8:00; over midnight too")]


def _add_api(app: FastAPI) -> None:
    app.get("/api/gallery", responses=_problems(), tags=["gallery"])(_gallery)
    app.post("/api/query", responses=_problems(413, 415, 422, 503), openapi_extra=_BODY, tags=["query"])(_query)
    app.get(
        "/api/crop",
        responses=_problems(404, 413, 415, 422) | {200: {"content": {"image/jpeg": {}}, "description": "The crop."}},
        response_class=Response,
        tags=["gallery"],
    )(_crop)
    app.get("/api/look", responses=_problems(404, 413, 415, 422, 503), tags=["gallery"])(_look)


def _gallery(request: Request) -> GalleryInfo:
    """What the gallery holds, and what may be asked of it."""
    own = request.app.state.own
    about = own.searcher.describe()
    return GalleryInfo(
        images=about["count"],
        columns=about["columns"],
        feature=own.searcher.extractor.feature,
        threshold=own.threshold and own.threshold.value,
        threshold_source=str(own.threshold or ""),
        visibility=own.searcher.visibility,
        formats=list(images.FORMATS.values()),
        max_bytes=own.limits.max_bytes,
        max_pixels=own.limits.max_pixels,
        max_matches=MAX_MATCHES,
    )


async def _query(
    request: Request,
    k: Annotated[int, Query(ge=1, le=MAX_MATCHES, description="matches")] = 12,
    box: Annotated[
        str | None,
        Query(
            pattern=r"^\d{1,6}(\.\d{1,3})?(,\d{1,6}(\.\d{1,3})?){3}$",
            description="of the person in a frame, pixels: x1,y1,x2,y2",
        ),
    ] = None,
    camera: Annotated[
        list[Annotated[str, Query(max_length=200)]], Query(max_length=100, description="only these cameras")
    ] = [],  # noqa: B006 (FastAPI copies it)
    after: Annotated[dt.datetime | None, Query(description="not before; UTC where it has no offset")] = None,
    before: Annotated[dt.datetime | None, Query(description="not after; UTC where it has no offset")] = None,
    from_clock: ClockTime = None,
    to_clock: ClockTime = None,
    where: Annotated[str, Query(max_length=1000, description="a filter in the gallery's language")] = "",
    attention: Annotated[bool, Query(description="also where the model looks")] = False,
) -> Answer:
    """The images of the gallery that look most like a person."""
    own = request.app.state.own
    with _as_http():
        wanted = filter_of(camera, after, before, from_clock, to_clock, where)
        async with own.uploads:
            data = await _body(request, own.limits.max_bytes)
            async with own.decoding:
                image = await asyncio.to_thread(_decoded, data, own.limits.max_pixels, box)
            del data
        width, height = image.size
        found = await asyncio.wrap_future(own.searcher.submit(image, k=k, where=wanted, attention=attention))
    limit = own.threshold and own.threshold.value
    matches = [_match(i, hit, limit) for i, hit in enumerate(found.hits, 1)]
    return Answer(
        nobody=None if limit is None else not any(m.same_person for m in matches),
        threshold=limit,
        visibility=found.visibility,
        attention=found.attention,
        width=width,
        height=height,
        matches=matches,
    )


async def _crop(request: Request, id: Id) -> Response:
    """An image of the gallery as a small JPEG."""
    own = request.app.state.own
    with _as_http():
        async with own.decoding:
            content = await asyncio.to_thread(lambda: images.jpeg(_image_of(own, id)))
    return Response(content, media_type="image/jpeg")


async def _look(request: Request, id: Id) -> Look:
    """Where the model looks in an image of the gallery."""
    own = request.app.state.own
    with _as_http():
        async with own.decoding:
            image = await asyncio.to_thread(_image_of, own, id)
        found = await asyncio.wrap_future(own.searcher.submit(image, attention=True))
    return Look(attention=found.attention, visibility=found.visibility)


class _as_http:
    """Errors inside the scope as statuses."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, DamagedFile):  # its text has paths
            logger.error("%s", error)
            raise HTTPException(500, "the gallery is damaged; the server's log says where") from error
        codes = (
            (images.Missing, 404),
            (images.TooLarge, 413),
            (images.NotAnImage, 415),
            (ValueError, 422),
            (Busy, 503),
        )
        for expected, code in codes:
            if isinstance(error, expected):
                headers = {"Retry-After": "2"} if code == 503 else None
                raise HTTPException(code, str(error), headers) from error


async def _body(request: Request, limit: int) -> bytes:
    """The upload; no more than the limit is ever held.

    Raises:
        TooLarge: it is longer. NotAnImage: there is none, or it stopped coming.
    """
    data = bytearray()
    too_large = images.TooLarge(f"the upload has more than {limit / 2**20:g} MiB")
    if int(request.headers.get("content-length", "0")) > limit:
        raise too_large
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                data += chunk
                if len(data) > limit:
                    raise too_large
    except ClientDisconnect:
        raise images.NotAnImage("the upload broke off") from None
    except TimeoutError:
        raise images.NotAnImage(f"the upload did not arrive within {PATIENCE:g} s") from None
    if not data:
        raise images.NotAnImage("the request has no body; expected the bytes of an image file")
    return bytes(data)


def _decoded(data: bytes, max_pixels: int, box: str | None) -> Image.Image:
    image = images.decode(data, max_pixels)
    if box is None:
        return image
    [crop] = crop_boxes(np.asarray(image), [[float(x) for x in box.split(",")]], bgr=False)
    if crop is None:
        raise ValueError(f"box {box} has no pixel inside the image of {image.width} x {image.height}")
    return Image.fromarray(crop)


def _image_of(own: _State, id: str) -> Image.Image:
    hit = own.searcher.get(id)
    if hit is None:
        raise images.Missing("the gallery has no image of that id")
    return images.read_crop(own.folder, hit.path, own.limits.max_pixels)


def _match(rank: int, hit: Hit, limit: float | None) -> Match:
    values = {name: _finite(value) for name, value in hit.values.items()}
    own = {name: values.pop(name, None) for name in ("camera", "time", "track", "visibility")}
    return Match(
        id=hit.id,
        rank=rank,
        similarity=hit.similarity,
        same_person=None if limit is None else hit.similarity >= limit,
        **own,
        values={name: value.isoformat() if isinstance(value, dt.datetime) else value for name, value in values.items()},
    )


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
