"""Download files of a repository of the Hugging Face hub. Errors are one sentence each.

No message quotes a URL or an exception's text: either may hold a token.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import urllib.parse
import warnings
from collections.abc import Iterator
from pathlib import Path

from scripts.publishing.errors import PublishError

_HTTP_PACKAGES = ("httpx", "httpx2", "httpcore", "requests", "urllib3")


def check_endpoint(label: str) -> None:
    """Check HF_ENDPOINT before huggingface_hub is imported, which fails on some values.

    label: what messages begin with. Raises PublishError, which does not quote the value: it may
    hold a password.
    """
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint is None:
        return
    try:
        parsed = urllib.parse.urlsplit(endpoint)
        valid = parsed.scheme in ("http", "https") and parsed.hostname and parsed.port != 0
    except ValueError:
        valid = False
    if not valid or not endpoint.isprintable() or " " in endpoint:
        raise PublishError(
            f"{label}: HF_ENDPOINT is {'not a valid URL' if endpoint else 'empty'}; set it to the"
            " address of a hub, as in https://huggingface.co, or unset it"
        )


class HubRepository:
    """Files of one repository, all of the same commit.

    name: ORG/NAME. label: as users write it, for messages. may_be_path: the user may have meant a
    file or directory, which does not exist.
    """

    def __init__(self, name: str, label: str, *, may_be_path: bool = False) -> None:
        self.name = name
        self.label = label
        self._may_be_path = may_be_path
        self._commit: str | None = None

    def file(self, name: str) -> Path | None:
        """Return the path of a file in the hub's cache, after a download if it is not there.

        None if the repository has no such file. Raises PublishError.
        """
        check_endpoint(self.label)
        import huggingface_hub
        from huggingface_hub import errors

        # A commit gains no files; without a network, the hub's client would try for half a minute.
        if self._commit is not None and self._is_known_to_be_missing(name):
            return None
        with _quiet():
            try:
                path = Path(huggingface_hub.hf_hub_download(self.name, name, revision=self._commit))
            except errors.RemoteEntryNotFoundError:
                return None
            except errors.LocalEntryNotFoundError as error:
                raise self._explain(error.__cause__ or error, name) from error
            except Exception as error:
                raise self._explain(error, name) from error
        # Later files come from the commit of the first: a model is never a mixture of two.
        self._commit = path.parts[path.parts.index("snapshots") + 1]
        return path

    def _is_known_to_be_missing(self, name: str) -> bool:
        """Tell whether the hub's cache remembers that the commit has no such file."""
        import huggingface_hub

        found = huggingface_hub.try_to_load_from_cache(self.name, name, revision=self._commit)
        return found is huggingface_hub._CACHED_NO_EXIST

    def _explain(self, error: BaseException, name: str) -> PublishError:
        """Return the sentence for an exception of huggingface_hub."""
        from huggingface_hub import constants, errors

        host = urllib.parse.urlsplit(constants.ENDPOINT).hostname or "the hub"
        status = getattr(getattr(error, "response", None), "status_code", None)
        # Other errors are of a repository that there is.
        unknown = status is None or isinstance(error, errors.RepositoryNotFoundError)
        token = "set HF_TOKEN to a token that may read it, or run `hf auth login`"
        if isinstance(error, errors.GatedRepoError):
            unknown = False
            cause = f"{self.name} is gated; accept its terms on {host}, and {token}"
        elif isinstance(error, errors.RepositoryNotFoundError):
            cause = f"{host} has no public model {self.name}; check the name, or {token}"
        elif isinstance(error, errors.OfflineModeIsEnabled):
            cause = f"{name} is not in the hub's cache, and HF_HUB_OFFLINE is set; unset it"
        elif isinstance(error, errors.HFValidationError):
            cause = "that is no name of a model on the hub; give hf-hub:ORG/NAME"
        elif status in (401, 403):
            cause = f"{host} denies access to {name} (HTTP {status}); {token}"
        elif status is not None:
            cause = f"{host} answers HTTP {status} for {name}; run the same command again later"
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            cause = (
                f"there is no space left for {name} in the hub's cache,"
                f" {constants.HF_HUB_CACHE}; free some, or set HF_HOME to another disk"
            )
        elif isinstance(error, PermissionError):
            cause = (
                f"the hub's cache, {constants.HF_HUB_CACHE}, cannot be written; set HF_HOME to a"
                " directory that can"
            )
        elif "Connect" in type(error).__name__ or "Proxy" in type(error).__name__:
            cause = (
                f"{host} cannot be reached ({type(error).__name__}); check the network, HTTPS_PROXY"
                " and HF_ENDPOINT"
            )
        elif type(error).__module__.partition(".")[0] in _HTTP_PACKAGES or (
            isinstance(error, OSError) and "Consistency check failed" in str(error)
        ):
            cause = (
                f"the download of {name} was interrupted ({type(error).__name__}); run the same"
                " command again"
            )
        else:
            cause = (
                f"{name} cannot be downloaded ({type(error).__name__}); check HF_ENDPOINT, HF_HOME"
                " and HF_TOKEN"
            )
        if self._may_be_path and self._commit is None and unknown:
            return PublishError(
                f"there is no file or directory {self.label} here; as a hub name: {cause}"
            )
        return PublishError(f"{self.label}: {cause}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep huggingface_hub's warnings and, outside a terminal, its progress bars off stderr."""
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity(logging.CRITICAL)
    if not sys.stderr.isatty():
        disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
