"""Hub: downloads from the Hugging Face Hub at a commit, and explains the errors of the Hub in one line.

The client resumes interrupted files, keeps complete files in its cache, and reads the token from HF_TOKEN.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

LONGEST_WAIT_SECONDS = 60
"""The longest wait that the Hub may request; a longer wait is an error, so that the user can decide."""
_ANSWER_WITHIN_SECONDS = 20


class Repository(NamedTuple):
    """A repository on the Hub, and the parameter that names it."""

    parameter: str
    name: str
    revision: str | None
    kind: str = "model"
    """`model` or `dataset`."""

    @property
    def page(self) -> str:
        """The URL of its page for a browser."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"


def split_revision(named: str) -> tuple[str, str | None]:
    """Splits `owner/name@revision` into name and revision; the revision is optional."""
    name, _, revision = named.partition("@")
    return name, revision or None


def download(repository: Repository, patterns: list[str]) -> Path:
    """Downloads the files of a repository that match the patterns, and returns their folder, whose name is the commit.

    Raises:
        ValueError: if the download fails; says the cause and the remedy.
    """
    from huggingface_hub import snapshot_download

    with asking(repository):
        return Path(snapshot_download(repository.name, revision=repository.revision, allow_patterns=patterns))


def files_of(repository: Repository) -> list[str] | None:
    """Returns the paths of all files of a repository; None if the Hub may not be asked (HF_HUB_OFFLINE).

    Raises:
        ValueError: if the Hub does not answer; says the cause and the remedy.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return None
    with asking(repository):
        return list(HfApi().list_repo_files(repository.name, revision=repository.revision, repo_type=repository.kind))


@contextmanager
def asking(repository: Repository) -> Iterator[None]:
    """Limits every wait for the Hub, and turns errors of its client into one-line ValueErrors."""
    _bound_waits()
    try:
        yield
    except Exception as error:
        at = f" at {repository.revision!r}" if repository.revision else ""
        raise ValueError(f"`{repository.parameter}`: {repository.name!r}{at}: {why(error, repository)}") from None


def why(error: BaseException, repository: Repository | None) -> str:
    """Returns the cause of an error and its remedy in one line, without the token; `repository` is None for local files."""
    from huggingface_hub import get_token

    for one in _chain(error):
        if repository and (said := _status(one, repository) or _interruption(one)):
            return said
    said = " ".join(str(error).split()) or type(error).__name__
    return said.replace(token, "HF_TOKEN") if (token := get_token()) else said


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and its causes, including suppressed ones (`datasets` suppresses them)."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def _status(error: BaseException, repository: Repository) -> str | None:
    """Returns what an HTTP status of the Hub means, or None for other errors."""
    from huggingface_hub import constants, errors, get_token

    if isinstance(error, errors.HFValidationError):
        return "not an existing folder, and not a name on the Hub, wanted owner/name"
    if not isinstance(error, errors.HfHubHTTPError):
        return None
    token, status = get_token(), error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return f"gated ({status}): accept its terms at {repository.page}, and set HF_TOKEN to a token of that account"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"no such revision ({status}): see {repository.page}/commits/main, or use null for the default branch"
    if isinstance(error, errors.EntryNotFoundError):
        return f"no such file ({status}): see {repository.page}/tree/main for its files"
    if status == 401 and token:
        return f"invalid token (401): set HF_TOKEN to a token from {constants.ENDPOINT}/settings/tokens, or unset it"
    if isinstance(error, errors.RepositoryNotFoundError):
        private = "the token in HF_TOKEN needs access to it" if token else "set HF_TOKEN"
        return f"not found ({status}): check the name; if it is private, {private}"
    return {
        401: "a token is required (401): set HF_TOKEN",
        403: f"no permission (403): {'the token in HF_TOKEN needs access to it' if token else 'set HF_TOKEN'}",
        404: "not found (404): check the name",
        429: f"too many requests (429): wait {_asked_wait(error.response) or 'some'} s, then run the command again"
        + ("" if token else "; set HF_TOKEN for a higher limit"),
    }.get(status, f"the Hub answered {status}: run the command again later; complete files are kept")


def _interruption(error: BaseException) -> str | None:
    """Returns why there was no answer or an incomplete one, or None for other errors."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, but not all files are in the cache: run the command once without HF_HUB_OFFLINE"
    if isinstance(error, errors.FileMetadataError) or type(error).__name__ == "JSONDecodeError":
        return f"{constants.ENDPOINT} answers, but not like the Hub: check HF_ENDPOINT and your proxy settings"
    name = type(error).__name__
    if name in ("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"):
        return f"cannot reach {constants.ENDPOINT} ({name}): check the network, or set HF_HUB_OFFLINE=1 to use cached files"
    if isinstance(error, errors.HTTPError) or name == "XetDownloadError" or "Consistency check failed" in str(error):
        return f"connection interrupted ({name}): run the command again; complete files are kept"
    return None


def _bound_waits() -> None:
    """Sets a timeout on requests of the client that have none, and raises an error if the Hub asks for too long a wait."""
    from huggingface_hub import get_session

    session = get_session()
    for moment, hook in (("request", _limit_time), ("response", _refuse_long_wait)):
        hooks = session.event_hooks
        if hook not in hooks[moment]:
            session.event_hooks = hooks | {moment: [*hooks[moment], hook]}


def _limit_time(request: Any) -> None:
    limits = request.extensions.get("timeout", {})
    names = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {name: limits.get(name) or _ANSWER_WITHIN_SECONDS for name in names}


def _refuse_long_wait(response: Any) -> None:
    from huggingface_hub.utils import hf_raise_for_status

    if response.status_code == 429 and _asked_wait(response) > LONGEST_WAIT_SECONDS:
        response.read()
        hf_raise_for_status(response)


def _asked_wait(response: Any) -> int:
    """Returns the wait in seconds that a response asks for: the header Retry-After, or `t` in RateLimit; 0 if none."""
    limited = re.search(r"r=0;\s*t=(\d+)", response.headers.get("ratelimit", ""))
    asked = limited[1] if limited else response.headers.get("retry-after", "")
    return int(asked) if asked.isdecimal() else 0
