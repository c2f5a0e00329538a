"""Models of a Hugging Face hub, by its own client: fetched into its cache once, and pushed.

HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to the client. Imports neither torch nor FastReID.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import first_line
from ..network import SECONDS, unreachable
from .options import CALIBRATION, VISIBILITY

__all__ = ["FURTHER", "PREFIX", "fetch", "is_repository", "push"]

PREFIX = "hf-hub:"
# Files that a model may bring beside those that it must have.
FURTHER = (VISIBILITY, CALIBRATION)

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def is_repository(text: str) -> bool:
    """Whether a text has the form ORG/MODEL."""
    return bool(_REPOSITORY.fullmatch(text))


def _parse(name: str) -> tuple[str, str]:
    """Repository and revision of ``hf-hub:ORG/MODEL[@REVISION]``."""
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    if not is_repository(repository) or (not revision and "@" in name):
        raise ValueError(f"{name!r} is no name of a model; expected {PREFIX}ORG/MODEL, or {PREFIX}ORG/MODEL@REVISION")
    return repository, revision or "main"


def fetch(name: str, *needed: str) -> Path:
    """The folder of a model's files in the client's cache.

    What is there is used as it is, without asking the network; a state as of another day is another revision, or what
    `hf download ORG/MODEL` brings.

    Args:
        name: ``hf-hub:ORG/MODEL[@REVISION]``; the revision is a branch, a tag or a commit, main unless given.
        needed: files that the model must have; the first is the weights. All are of one commit.

    Raises:
        ValueError: no such name, or a repository without these files.
        ConnectionError: not in the cache, and the hub cannot be reached.
        FileNotFoundError: the hub has no such model or revision, or does not show it.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, revision = _parse(name)
    cached = [try_to_load_from_cache(repository, file, revision=revision) for file in needed]
    if all(isinstance(file, str) for file in cached):
        return Path(str(cached[0])).parent
    if not constants.HF_HUB_OFFLINE and (reason := unreachable(constants.ENDPOINT)):  # the client would try for long
        raise ConnectionError(_not_cached(name, reason))
    with _in_words(name, repository, needed):
        path = hf_hub_download(repository, needed[-1], revision=revision, etag_timeout=SECONDS)
        commit = Path(path).parent.name
        for file in needed[:-1]:
            path = hf_hub_download(repository, file, revision=commit, etag_timeout=SECONDS)
        for file in FURTHER:
            try:
                hf_hub_download(repository, file, revision=commit, etag_timeout=SECONDS)
            except LocalEntryNotFoundError:  # lost on the way; a model without it is no error
                raise
            except EntryNotFoundError:
                continue
    return Path(path).parent


def push(folder: str | Path, repository: str, files: Sequence[str], *, private: bool = False) -> str:
    """Create a model of the hub where there is none, and commit files of a folder to it.

    Returns:
        The address of the commit.

    Raises:
        ValueError: no name of a repository; the hub refuses the files or the account.
        ConnectionError: the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants

    if not is_repository(repository):
        raise ValueError(f"{repository!r} is no name of a model of the hub; expected ORG/MODEL")
    if reason := unreachable(constants.ENDPOINT):
        raise ConnectionError(f"{PREFIX}{repository} cannot be pushed: {reason}")
    added = [CommitOperationAdd(path_in_repo=file, path_or_fileobj=Path(folder, file)) for file in files]
    with _in_words(f"{PREFIX}{repository}", repository, files):
        api = HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)
        done = api.create_commit(repository, added, commit_message=f"Upload {', '.join(files)}")
    return done.commit_url


@contextmanager
def _in_words(name: str, repository: str, files: Sequence[str]) -> Iterator[None]:
    """The client's errors as one sentence with its remedy."""
    from huggingface_hub import constants
    from huggingface_hub import errors as of_hub

    host = constants.ENDPOINT
    try:
        yield
    except of_hub.GatedRepoError as error:
        raise FileNotFoundError(
            f"{name}: its owner grants access on {host}/{repository}; ask there, then `hf auth login`"
        ) from error
    except of_hub.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{host} has no model {repository}, or does not show it without `hf auth login` (HF_TOKEN)"
        ) from error
    except of_hub.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name}: {host} has no such revision of {repository}") from error
    except of_hub.LocalEntryNotFoundError as error:
        raise ConnectionError(_not_cached(name, _cause(error))) from error
    except of_hub.EntryNotFoundError as error:
        raise ValueError(
            f"{name} is no model of this package: expected {' and '.join(files)}, as tools/publish.py writes them"
        ) from error
    except of_hub.HfHubHTTPError as error:
        raise ValueError(
            f"{host} refused {name}: {first_line(error)}. An account is named by `hf auth login`"
        ) from error
    except Exception as error:  # of the HTTP client, which is another with each version of huggingface_hub
        if not (isinstance(error, ConnectionError) or type(error).__module__.startswith(("httpx", "requests"))):
            raise
        raise ConnectionError(f"{name}: {host} cannot be reached: {_cause(error)}") from error


def _not_cached(name: str, reason: str) -> str:
    from huggingface_hub import constants

    return f"{name} cannot be fetched: {reason}. It is not in the cache ({constants.HF_HUB_CACHE})"


def _cause(error: BaseException) -> str:
    """The innermost reason of a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error) or type(error).__name__
