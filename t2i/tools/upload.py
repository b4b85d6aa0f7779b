"""Upload: puts a folder into a model repository on the Hub, after checking that it may be written.

The token comes from HF_TOKEN in the environment, and from nowhere else. The Hub's client skips what the repository has already,
so that a repeated upload of the same folder continues an interrupted one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from t2i.fetch.hub import Repository, why

_STALE = ["*.safetensors", "pictures/*"]
"""What is removed from the repository if the folder does not have it: weights and pictures of an earlier model."""


class _Refused(ValueError):
    """The Hub would not take the model, for a reason that the message says."""


class Target(NamedTuple):
    """A repository on the Hub that may be written."""

    name: str
    exists: bool
    private: bool
    """Whether it is private, or will be if it does not exist yet."""


class Uploaded(NamedTuple):
    """What was uploaded."""

    url: str
    """Of the commit."""
    private: bool


def open_target(name: str, *, private: bool) -> Target:
    """Returns a repository, after checking everything that can be checked before an upload; changes nothing.

    Args:
        name: its name on the Hub, `owner/name`.
        private: whether to create it as a private repository if it does not exist.

    Raises:
        ValueError: if the name is not valid, there is no token or it may not write, the Hub cannot be reached, the repository
            is public though a private one is asked for, or the name belongs to a dataset or a Space.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"`--hub`: {' '.join(str(error).split())}") from None
    if "/" not in name:
        raise ValueError(f"`--hub`: {name!r}, wanted owner/name: put the name of your account or organization before it")
    if constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it, or write a folder with --to")
    api = _client()
    with _explained(name):
        try:
            here = api.model_info(name, timeout=20)
            api.auth_check(name, write=True)
        except GatedRepoError:  # it exists, though it is a RepositoryNotFoundError
            raise
        except RepositoryNotFoundError:
            _check_free(api, name)
            return Target(name, False, private)
    if private and not here.private:
        raise ValueError(
            f"`--private`: {name} exists and is public: make it private at {constants.ENDPOINT}/{name}/settings, or choose "
            "another name"
        )
    return Target(name, True, bool(here.private))


def upload(folder: Path, target: Target, title: str) -> Uploaded:
    """Creates the repository if it does not exist, and uploads a folder into it.

    Raises:
        ValueError: if the Hub does not accept the card or the files, or the connection fails.
    """
    api = _client()
    with _explained(target.name):
        _check_card(folder / "README.md")
        if not target.exists:
            api.create_repo(target.name, private=target.private or None, exist_ok=True)
        private = bool(api.model_info(target.name, timeout=20).private)  # an organization may decide it
        if target.private and not private:
            raise _Refused("is public by now, wanted a private repository: nothing was uploaded")
        commit = api.upload_folder(
            repo_id=target.name, folder_path=folder, commit_message=f"t2i publish: {title}", delete_patterns=_STALE
        )
    return Uploaded(str(commit.commit_url), private)


def _client() -> Any:
    """Returns the Hub's client with the token of the environment."""
    from huggingface_hub import HfApi, constants

    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise ValueError(f"HF_TOKEN is not set: set it to a token with write access, from {constants.ENDPOINT}/settings/tokens")
    return HfApi(token=token)


def _check_card(card: Path) -> None:
    """Raises _Refused if the Hub does not accept the metadata of a card."""
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import BadRequestError

    try:
        ModelCard.load(card).validate()
    except ValueError as error:
        if isinstance(error, BadRequestError) or not isinstance(error.__context__, BadRequestError):
            raise
        raise _Refused(f"the Hub does not accept the card: {' '.join(str(error).split())[:300]}") from None


def _check_free(api: Any, name: str) -> None:
    """Raises _Refused if a dataset or a Space has a name."""
    from huggingface_hub.errors import RepositoryNotFoundError

    for kind in ("dataset", "space"):
        try:
            api.repo_info(name, repo_type=kind, timeout=20)
        except RepositoryNotFoundError:
            continue
        raise _Refused(f"is a {kind} on the Hub, wanted a model or a new name: choose another name")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns errors of the Hub's client into one-line ValueErrors, without the token."""
    from huggingface_hub import constants

    try:
        yield
    except _Refused as error:
        raise ValueError(f"`--hub`: {name}: {error}") from None
    except Exception as error:
        status, kinds = _status(error)
        if status == 401:
            said = f"invalid token (401): set HF_TOKEN to a token from {constants.ENDPOINT}/settings/tokens"
        elif status == 403:
            account = name.partition("/")[0]
            said = f"no permission (403): HF_TOKEN needs write access to {account}: see {constants.ENDPOINT}/settings/tokens"
        elif kinds & {"ConnectError", "ConnectTimeout", "ProxyError"}:
            said = f"cannot reach {constants.ENDPOINT}: check the network, then run the command again"
        else:
            said = why(error, Repository("--hub", name, None))
        raise ValueError(f"`--hub`: {name}: {said}") from None


def _status(error: BaseException | None) -> tuple[int | None, set[str]]:
    """Returns the HTTP status that an error is about, if any, and the names of the error's class and of those it came from."""
    from huggingface_hub.errors import HfHubHTTPError

    status, kinds = None, set()
    while error is not None:
        kinds.add(type(error).__name__)
        if isinstance(error, HfHubHTTPError):
            status = status or error.response.status_code
        error = error.__cause__ or error.__context__
    return status, kinds
