"""Retrieval: does one paper of the ACL Anthology Network cite the other, both read as bytes?

Files `new_aan_pairs.{train,eval,test}.tsv` of `tsv_data`: label, two identifiers and two texts,
separated by tabs, with neither header nor quoting. Rows from before 2021 used a head on the two
encodings side by side, later ones add their product and difference: the two are not comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from paramixer._checks import check_choice
from paramixer.tasks.lra_release import (
    EOS,
    RELEASE,
    Encoder,
    character_table,
    character_tokens,
    comparison,
    find_folder,
    read_label,
    table_rows,
)
from paramixer.tasks.store import Content, Row, Store, prepare
from paramixer.tasks.stored import (
    BYTES,
    Reading,
    byte_reading,
    byte_tokens,
    in_groups,
    store_path,
    stored_task,
)
from paramixer.tasks.task import Task, Tokens

VARIANTS = {
    "honest": "as lra; there is nothing to mend",
    "lra": "Long Range Arena's own rows, if the head sees the two encodings side by side; "
    "4,000 bytes",
    "s4": "S4 and successors, if the head also sees product and difference: characters of the "
    "training part, an end token, at most 4,000 positions",
}
CLASSES = 2
FILES = tuple(f"new_aan_pairs.{part}.tsv" for part in ("train", "eval", "test"))

_ORIGIN = f"{RELEASE} (tsv_data)"
_LENGTH = 4000


def lra_retrieval(
    folder: str | Path,
    variant: str = "honest",
    *,
    stores: Path | None = None,
    progress: Callable[[int], None] = lambda samples: None,
) -> Task:
    """Reads the official files, or a store made from them before.

    Arguments and errors are those of `lra_release`.

    Returns:
        x, a pair of (n,) int64: bytes + 1, in "s4" see `Task.input.symbols`; batches are (B, 2, N).
        An empty text has length 0. y () int64, 1 if one cites the other.
    """
    check_choice("lra_retrieval", "variant", variant, VARIANTS)
    place = find_folder("lra_retrieval", Path(folder), ("tsv_data", "aan"), FILES, _ORIGIN)
    files = [place / name for name in FILES]
    level = "characters" if variant == "s4" else "bytes"
    vocabulary = 2**16 if level == "characters" else 256
    store = prepare(
        store_path(place, stores, f"retrieval-{level}"),
        {"task": "retrieval", "level": level, "length": _LENGTH},
        files,
        lambda: Content(_read(files, level), FILES, vocabulary, sequences=2),
        progress,
    )
    train, validation, test = (in_groups(store, [part]) for part in range(3))
    reading, tokens = _reading(store, variant)
    return stored_task(
        "retrieval",
        variant,
        store,
        (train, validation, test),
        reading,
        tokens,
        CLASSES,
        sequences=2,
        **comparison("retrieval", variant, VARIANTS),
    )


def _reading(store: Store, variant: str) -> tuple[Reading, Tokens]:
    if variant == "s4":
        table, symbols = character_table(store, least_count=1)
        reading = Reading(table, _LENGTH - 1, suffix=(EOS,))
        return reading, Tokens(len(symbols), padding=0, symbols=symbols)
    return byte_reading(_LENGTH), BYTES


def _read(files: list[Path], level: str) -> Iterator[Row]:
    characters = level == "characters"
    encode: Encoder = character_tokens if characters else byte_tokens
    limit = _LENGTH - characters  # S4 counts the characters that stand before its end token
    for group, path in enumerate(files):
        for number, (label, _, _, *texts) in table_rows("lra_retrieval", path, columns=5):
            first, second = (encode(text)[:limit] for text in texts)
            where = f"{path}, line {number}"
            yield Row((first, second), read_label("lra_retrieval", where, label, CLASSES), group)
