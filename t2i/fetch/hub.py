"""The Hugging Face Hub: repositories at a commit, and what its refusals mean.

Its client resumes a file whose connection breaks off, keeps every file that came whole, and reads the token from HF_TOKEN.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

LONGEST_WAIT_SECONDS = 60
"""What the Hub may ask us to wait; beyond it the wait is the user's to decide."""
_ANSWER_WITHIN_SECONDS = 20


class Repository(NamedTuple):
    """A repository of the Hub, and the parameter that names it."""

    parameter: str
    name: str
    revision: str | None
    kind: str = "model"
    """`model` or `dataset`."""

    @property
    def page(self) -> str:
        """Its address for a browser."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"


def split_revision(named: str) -> tuple[str, str | None]:
    """Returns name and revision of `owner/name@revision`, whose revision may be left out."""
    name, _, revision = named.partition("@")
    return name, revision or None


def download(repository: Repository, patterns: list[str]) -> Path:
    """Returns the folder of a repository's files that fit the patterns, named by its commit.

    Raises:
        ValueError: why they are not to be had, and what to do.
    """
    from huggingface_hub import snapshot_download

    with asking(repository):
        return Path(snapshot_download(repository.name, revision=repository.revision, allow_patterns=patterns))


@contextmanager
def asking(repository: Repository) -> Iterator[None]:
    """Bounds every wait for the Hub, and turns what its client raises into a ValueError of one line."""
    _bound_waits()
    try:
        yield
    except Exception as error:
        at = f" at {repository.revision!r}" if repository.revision else ""
        raise ValueError(f"`{repository.parameter}`: {repository.name!r}{at}: {why(error, repository)}") from None


def why(error: BaseException, repository: Repository | None) -> str:
    """Returns the cause of an error and its remedy in one line, without the token; `repository` is None for files on disk."""
    from huggingface_hub import get_token

    for one in _chain(error):
        if repository and (said := _status(one, repository) or _interruption(one)):
            return said
    said = " ".join(str(error).split()) or type(error).__name__
    return said.replace(token, "HF_TOKEN") if (token := get_token()) else said


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, also where that is suppressed, as `datasets` does."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def _status(error: BaseException, repository: Repository) -> str | None:
    """What a status of the Hub means."""
    from huggingface_hub import constants, errors, get_token

    if isinstance(error, errors.HFValidationError):
        return "neither a folder here nor a name on the Hub: wanted owner/name"
    if not isinstance(error, errors.HfHubHTTPError):
        return None
    token, status = get_token(), error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return f"gated ({status}): accept its terms at {repository.page}, and set HF_TOKEN to a token of that account"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"no such revision ({status}): {repository.page}/commits/main lists them; null is the default branch"
    if isinstance(error, errors.EntryNotFoundError):
        return f"no such file ({status}): {repository.page}/tree/main lists what it has"
    if status == 401 and token:
        return f"the token is not known (401): set HF_TOKEN to one of {constants.ENDPOINT}/settings/tokens, or unset it"
    if isinstance(error, errors.RepositoryNotFoundError):
        private = "the token in HF_TOKEN must be let in" if token else "set HF_TOKEN"
        return f"not found ({status}): check the name; if it is private, {private}"
    return {
        401: "a token is wanted (401): set HF_TOKEN",
        403: f"no permission (403): {'the token in HF_TOKEN' if token else 'who has no token (HF_TOKEN)'} may not read it",
        404: "not found (404): check the name",
        429: f"too many requests (429): wait {_asked_wait(error.response) or 'some'} s, and run it again"
        + ("" if token else "; with HF_TOKEN set, more are allowed"),
    }.get(status, f"the Hub answered {status}: run it again later; what came whole is kept")


def _interruption(error: BaseException) -> str | None:
    """What it means that no answer came, or half of one."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and the disk has not all of it: run it once without"
    if isinstance(error, errors.FileMetadataError) or type(error).__name__ == "JSONDecodeError":
        return f"{constants.ENDPOINT} answers, but not as the Hub does: check HF_ENDPOINT, and proxies"
    name = type(error).__name__
    if name in ("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"):
        return f"{constants.ENDPOINT} is out of reach ({name}): check the network; HF_HUB_OFFLINE=1 uses what is on disk"
    if isinstance(error, errors.HTTPError) or name == "XetDownloadError" or "Consistency check failed" in str(error):
        return f"broken off ({name}): run it again; what came whole is kept"
    return None


def _bound_waits() -> None:
    """Gives the client's requests a time limit where they have none, and ends those that are to wait for too long."""
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
    """The seconds that a response asks to wait: Retry-After, or the `t` of RateLimit."""
    limited = re.search(r"r=0;\s*t=(\d+)", response.headers.get("ratelimit", ""))
    asked = limited[1] if limited else response.headers.get("retry-after", "")
    return int(asked) if asked.isdecimal() else 0
