"""Errors of remote stores: what a server's refusal means, and what to set."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from stratascope.addresses import without_secrets
from stratascope.errors import UnreadError, is_panic

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
"""HTTP statuses that are retried."""
_METADATA_SERVICE = re.compile(r"latest/api/token|latest/meta-data|computeMetadata|metadata/identity|169\.254\.1[67]\d|fd00:ec2")
"""Cloud metadata services, which provide credentials if none are set."""
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN too where they are temporary), or AWS_SKIP_SIGNATURE=true "
    "for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account or run `gcloud auth application-default login`, or set "
    "GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY, or AZURE_SKIP_SIGNATURE=true for a "
    "public container",
}
"""Advice for a service without credentials."""
DOCS = "docs/remote.md lists all variables"
_BAD_CREDENTIALS = frozenset(
    "AuthenticationFailed ExpiredToken InvalidAccessKeyId InvalidToken InvalidSecurity SignatureDoesNotMatch TokenRefreshRequired".split()
)
"""Error codes of services for credentials that expired or are wrong."""
_NO_BUCKET = frozenset(("ContainerNotFound", "NoSuchBucket"))
_OTHER_REGION = frozenset("AuthorizationHeaderMalformed IllegalLocationConstraintException PermanentRedirect".split())


class UnreachableError(UnreadError):
    """A server did not answer or refused; nothing shows that the store is damaged.

    Attributes
    ----------
    status
        HTTP status of the refusal; None where there was no answer.
    """

    def __init__(self, *args: object, status: int | None = None, in_python: str = "") -> None:
        super().__init__(*args, in_python=in_python)
        self.status = status


class Refusal:
    """Reason of a failed request, parsed from obstore's message."""

    def __init__(self, error: BaseException, silence: float) -> None:
        text = first_line(error)
        # of the answer itself only the error's code is kept: pages and XML are long and may hold what was signed
        found = re.search(r"status code: (\d{3})(?: ([A-Za-z' -]+))?(.*)", text)
        self.status = int(found[1]) if found else None
        code = re.search(r"<Code>(\w{1,60})</Code>", found[3]) if found else None
        self.code = code[1] if code else ""
        address = re.search(r"performing \w+ (\S+://\S+)", text)
        self.address = without_secrets(address[1]) if address and "REDACTED" not in address[1] else ""
        self.ranges = "ange" in text and ("upport" in text or "artial" in text)
        self.credentials = _METADATA_SERVICE.search(text) is not None or (self.status is None and "redential" in text)
        conflict = self.code == "ConditionalRequestConflict"
        self.passing = not self.ranges and not self.credentials and (self.status in PASSING or self.status is None or conflict)
        if found:
            self.cause = f"the server answers {found[1]} {(found[2] or '').strip()}".rstrip() + (f" ({self.code})" if code else "")
        else:
            self.cause = _cause(text, silence if "TimedOut" in str(error) else None)

    def sentence(self, purpose: str, what: str, service: str, waited: float) -> str:
        """What was expected, what was found, what to do, for a request to `purpose` (read, write) `what`."""
        if self.ranges:
            return (
                f"expected a server that answers Range requests, found one that does not (asked for a part of {what}); "
                "python -m http.server is such a one: use nginx, caddy or an object store, or fetch the whole store first"
            )
        if self.credentials:
            return f"expected to {purpose} {what}, found no credentials: {CREDENTIALS.get(service, 'set them')}; {DOCS}"
        where = f" ({self.address})" if self.address else ""
        long = f", after {waited:.0f} s of trying" if waited >= 1 else ""
        advice = "check the address and the network, then run again"
        if self.code in _BAD_CREDENTIALS:
            advice = f"the credentials are wrong or have expired: {CREDENTIALS.get(service, 'set them')}; {DOCS}"
        elif self.code in _NO_BUCKET:
            advice = "create the bucket, or check the address"
        elif self.code in _OTHER_REGION:
            advice = "the bucket is in another region: set AWS_REGION to it"
        elif self.status in (401, 403) and purpose != "read":
            advice = f"check the address and whether the credentials may {purpose} there; {DOCS}"
        elif self.status in (401, 403):
            advice = f"check the address and the credentials: some hosts answer so for files that do not exist; {DOCS}"
        elif self.status in PASSING:
            advice = "the host is overloaded or broken: run the same command again later"
        return f"expected to {purpose} {what}, found: {self.cause}{where}{long}; {advice}"


def _cause(text: str, silence: float | None) -> str:
    """Reason of a transport error without the client's retry statistics."""
    cause = text.rpartition(" - ")[2].removeprefix("Generic ").partition("error: ")[2] or text.rpartition(" - ")[2]
    cause = cause.removeprefix("HTTP error: ")
    if silence is not None:
        return f"the server sends nothing for {silence:.0f} s"
    if re.search(r"Requested \d+\.\.\d+, got \d+\.\.\d+", cause):
        return "the server sends other bytes than were asked for"
    if "error sending request" in cause:
        return "no server answers"
    if "body error" in cause:
        return "the server cuts its answer off"
    if "builder error" in cause:
        return "an address that cannot be asked for"
    return without_secrets(cause)


def first_line(error: BaseException) -> str:
    """The message without obstore's dump of the request."""
    return without_secrets(" ".join(str(error).partition("Debug source")[0].split()))


_REDIRECTING = threading.Lock()
"""Held while standard error is redirected."""


@contextmanager
def silenced_panics() -> Iterator[None]:
    """Suppress what a Rust panic prints (a hundred lines); other output is printed at the end."""
    alone = _REDIRECTING.acquire(blocking=False)
    try:
        kept = os.dup(2) if alone else -1
    except OSError:  # no standard error at all
        kept = -1
    if kept < 0:
        try:
            yield
        finally:
            if alone:
                _REDIRECTING.release()
        return
    crashed = False
    with tempfile.TemporaryFile() as said:
        try:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.flush()
            os.dup2(said.fileno(), 2)
            yield
        except BaseException as error:
            crashed = is_panic(error) or (error.__cause__ is not None and is_panic(error.__cause__))
            raise
        finally:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            _REDIRECTING.release()
            said.seek(0)
            text = b"" if crashed else said.read()
            while text:
                text = text[os.write(2, text) :]
