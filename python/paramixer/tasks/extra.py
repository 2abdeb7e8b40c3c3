"""The optional packages of `paramixer[train]`, and what to say when one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def train_extra(user: str) -> Iterator[None]:
    """Turns a failed import inside the block into an ImportError that names the remedy.

    Args:
        user: what needs the import, for the message.

    Raises:
        ImportError: a package of the extra is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ImportError(
            f"{user} needs the package {package}, which is not installed. "
            "Run: pip install paramixer[train]"
        ) from error
