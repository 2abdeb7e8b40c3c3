"""ListOps from the official files: evaluate nested list operations; the label is the value.

Files `basic_train.tsv`, `basic_val.tsv`, `basic_test.tsv` of `listops-1000`, or those that
`paramixer.tasks.listops` writes: a header, then expression and value separated by a tab.
Parentheses are dropped, 15 tokens remain, 501 .. 1,999 of which make an
expression of the official files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from paramixer._checks import check_choice
from paramixer.tasks import listops
from paramixer.tasks.lra_release import (
    EOS,
    RELEASE,
    comparison,
    find_folder,
    read_label,
    table_rows,
)
from paramixer.tasks.store import Content, Row, Store, prepare
from paramixer.tasks.stored import Reading, in_groups, store_path, stored_task
from paramixer.tasks.task import Task, Tokens

VARIANTS = {
    "honest": "the rows of every variant but paramixer: the same expressions, parts and tokens",
    "lra": "Long Range Arena's own rows; batches of 2,000 positions with masks",
    "s4": "S4 and successors: an end token, at most 2,048 positions",
    "paramixer": "Paramixer: 1,999 positions, padding is like data (no mask); PSF-Attn had a first "
    "token too",
}
_ORIGIN = f"{RELEASE} (listops-1000); `python scripts/make_data.py listops` makes similar ones"
_UNKNOWN = 255
_LENGTH = 2000
_LENGTH_S4 = 2048
_LENGTH_PARAMIXER = 1999


def lra_listops(
    folder: str | Path,
    variant: str = "honest",
    *,
    stores: Path | None = None,
    progress: Callable[[int], None] = lambda samples: None,
) -> Task:
    """Reads the official files, or a store made from them before.

    Arguments and errors are those of `lra_release`.

    Returns:
        x (n,) int64: tokens 1 .. 15 in the order of `listops.TOKENS`; in "s4" 0 is padding, 2 the
        end and 3 .. 17 are the tokens, in "paramixer" 0 .. 14 are, and 15 is padding. y () int64 in
        0 .. 9.
    """
    check_choice("lra_listops", "variant", variant, VARIANTS)
    place = find_folder(
        "lra_listops", Path(folder), ("listops-1000", "listops"), listops.FILES, _ORIGIN
    )
    files = [place / name for name in listops.FILES]
    store = prepare(
        store_path(place, stores, "listops"),
        {"task": "listops"},
        files,
        lambda: Content(_read(files), listops.FILES, len(listops.TOKENS)),
        progress,
    )
    train, validation, test = (in_groups(store, [part]) for part in range(3))
    reading, tokens = _reading(variant)
    return stored_task(
        "listops",
        variant,
        store,
        (train, validation, test),
        reading,
        tokens,
        listops.CLASSES,
        floors=_root_floor(store, train, test),
        pad_to={"lra": _LENGTH, "paramixer": _LENGTH_PARAMIXER}.get(variant),
        masked=variant != "paramixer",
        **comparison("listops", variant, VARIANTS),
    )


def _reading(variant: str) -> tuple[Reading, Tokens]:
    numbers = torch.arange(len(listops.TOKENS))
    words = listops.TOKENS
    if variant == "s4":
        symbols = ("<pad>", "<unk>", "<eos>", *words)
        reading = Reading(numbers + 3, _LENGTH_S4 - 1, suffix=(EOS,))
        return reading, Tokens(len(symbols), padding=0, symbols=symbols)
    if variant == "paramixer":
        symbols = (*words, "<pad>", "<cls>")  # the last is in the published vocabulary, unused
        return Reading(numbers, _LENGTH_PARAMIXER), Tokens(17, padding=15, symbols=symbols)
    return Reading(numbers + 1, _LENGTH), Tokens(16, padding=0, symbols=("<pad>", *words))


def _read(files: list[Path]) -> Iterator[Row]:
    for group, path in enumerate(files):
        for number, (source, target) in table_rows("lra_listops", path, columns=2):
            if number == 1 and source == b"Source":
                continue
            where = f"{path}, line {number}"
            label = read_label("lra_listops", where, target, listops.CLASSES)
            yield Row((_tokens(source, where),), label, group)


def _tokens(source: bytes, where: str) -> NDArray[np.uint8]:
    """(n,) numbers of the tokens: every operator becomes one byte, and bytes become numbers."""
    for operator, letter in _LETTERS.items():
        source = source.replace(operator, letter)
    tokens = _NUMBERS[np.frombuffer(source.translate(None, b"() "), dtype=np.uint8)]
    if len(tokens) == 0 or (tokens == _UNKNOWN).any():
        raise ValueError(
            f"lra_listops: {where}: expression must consist of {' '.join(listops.TOKENS)} "
            f"(got {source[:60]!r})"
        )
    return tokens


def _root_floor(store: Store, train: NDArray, test: NDArray) -> dict[str, float]:
    """Accuracy of knowing the outermost operator alone."""
    if len(train) == 0 or len(test) == 0:
        return {}
    roots = store.arrays["tokens"][store.arrays["offsets"][:-1]]
    table = np.zeros((len(listops.TOKENS), listops.CLASSES), dtype=np.int64)
    np.add.at(table, (roots[train], store.labels[train]), 1)
    right = table.argmax(axis=1)[roots[test]] == store.labels[test]
    return {"root operator": round(100 * float(right.mean()), 2)}


_LETTERS = {
    word.encode(): bytes([ord("a") + number])
    for number, word in enumerate(listops.TOKENS)
    if word.startswith("[")
}
_NUMBERS = np.full(256, _UNKNOWN, dtype=np.uint8)
for _number, _word in enumerate(listops.TOKENS):
    _NUMBERS[_LETTERS.get(_word.encode(), _word.encode())[0]] = _number
