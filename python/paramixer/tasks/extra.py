"""The optional packages of `paramixer[train]`, and what to say when one is missing."""

from __future__ import annotations

from contextlib import AbstractContextManager

from paramixer._extras import needs_extra


def train_extra(user: str) -> AbstractContextManager[None]:
    """Turns a failed import inside the block into an ImportError that names the remedy.

    Args:
        user: what needs the import, for the message.

    Raises:
        ImportError: a package of the extra is missing.
    """
    return needs_extra(user, "train")
