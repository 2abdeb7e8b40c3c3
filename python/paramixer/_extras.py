"""The optional packages, by the extra that brings them, and what to say when one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(user: str, extra: str) -> Iterator[None]:
    """Turns a failed import inside the block into an ImportError that names the remedy.

    Args:
        user: what needs the import, for the message.
        extra: the extra of this distribution that brings the package.

    Raises:
        ImportError: a package of the extra is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ImportError(
            f"{user} needs the package {package}, which is not installed. "
            f"Run: pip install paramixer[{extra}]"
        ) from error
