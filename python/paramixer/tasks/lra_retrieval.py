"""Retrieval: does one paper of the ACL Anthology Network cite the other, both read as bytes?

Files `new_aan_pairs.{train,eval,test}.tsv` of `tsv_data`: label, two identifiers and two texts,
separated by tabs, with neither header nor quoting. Rows from before 2021 used a head on the two
encodings side by side, later ones add their product and difference: the two are not comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from paramixer._checks import check_choice
from paramixer.tasks.lra_release import (
    EOS,
    RELEASE,
    Encoder,
    byte_tokens,
    character_table,
    character_tokens,
    find_folder,
    in_groups,
    read_label,
    store_path,
    table_rows,
)
from paramixer.tasks.store import Content, Row, Store, prepare
from paramixer.tasks.stored import Reading, majority_floor, stored_parts
from paramixer.tasks.task import Classes, Task, Tokens, published

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

    Args:
        folder: the release, outer or inner, or the task's own.
        variant: one of `VARIANTS`, which says what each may be compared with.
        stores: folder of the store; by default inside the data's.
        progress: is told how many samples more are read, if there is no store yet.

    Returns:
        x, a pair of (n,) int64: bytes + 1, in "s4" see `Task.input.symbols`; batches are (B, 2, N).
        An empty text has length 0. y () int64, 1 if one cites the other.

    Raises:
        FileNotFoundError: the files are not there.
        ValueError: a file is malformed, or the variant is none.
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
    return Task(
        name="retrieval",
        variant=variant,
        input=tokens,
        output=Classes(CLASSES),
        length=reading.length,
        parts=stored_parts(store, reading, (train, validation, test)),
        floors=majority_floor(store, train, test),
        published=published("retrieval", None if variant == "honest" else variant),
        comparable_to=VARIANTS[variant],
        sequences=2,
    )


def _reading(store: Store, variant: str) -> tuple[Reading, Tokens]:
    if variant == "s4":
        table, symbols = character_table(store, least_count=1)
        reading = Reading(table, _LENGTH - 1, suffix=(EOS,))
        return reading, Tokens(len(symbols), padding=0, symbols=symbols)
    return Reading(torch.arange(1, 257), _LENGTH), Tokens(257, padding=0)


def _read(files: list[Path], level: str) -> Iterator[Row]:
    characters = level == "characters"
    encode: Encoder = character_tokens if characters else byte_tokens
    limit = _LENGTH - characters  # S4 counts the characters that stand before its end token
    for group, path in enumerate(files):
        for number, (label, _, _, *texts) in table_rows("lra_retrieval", path, columns=5):
            first, second = (encode(text)[:limit] for text in texts)
            where = f"{path}, line {number}"
            yield Row((first, second), read_label("lra_retrieval", where, label, CLASSES), group)
