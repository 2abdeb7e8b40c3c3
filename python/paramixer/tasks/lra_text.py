"""Text: is a film review (IMDB, Maas et al., 2011) good or bad, read as bytes?

The data are the folders of `aclImdb` (`train/pos/*.txt`, ..) or the files `train*.parquet` and
`test*.parquet` of the Hugging Face form, for which pyarrow must be installed. There is no official
validation part: publications have used the test part for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from paramixer._checks import check_choice
from paramixer.tasks.draws import carve
from paramixer.tasks.lra_release import (
    EOS,
    Encoder,
    character_table,
    character_tokens,
    comparison,
    find_folder,
    read_label,
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
    "honest": "no published row exactly: bytes as in lra, validation carved from training",
    "lra": "Long Range Arena's own rows: 4,000 bytes; validation is the test part",
    "s4": "S4 and successors: characters that occur 15 times, an end token, at most 4,096 "
    "positions; validation is the test part",
    "paramixer": "Paramixer and PSF-Attn: bytes as Python prints them (b'..'), a first token, "
    "4,097 positions, padding is like data (no mask); validation is the test part",
}
CLASSES = 2
PARTS = ("train", "test")
VALIDATION_SHARE = 0.1

_ORIGIN = (
    "ai.stanford.edu/~amaas/data/sentiment (aclImdb_v1.tar.gz), or the parquet files of the data "
    "set stanfordnlp/imdb"
)
_SENTIMENTS = ("neg", "pos")  # in the order of the labels
_FOLDERS = tuple(f"{part}/{sentiment}" for part in PARTS for sentiment in _SENTIMENTS)
_LENGTH = 4000
_LENGTH_S4 = 4096
_LEAST_COUNT_S4 = 15
_LENGTH_PARAMIXER = 4096


def lra_text(
    folder: str | Path,
    variant: str = "honest",
    *,
    stores: Path | None = None,
    progress: Callable[[int], None] = lambda samples: None,
) -> Task:
    """Reads the reviews, or a store made from them before.

    Arguments and errors are those of `lra_release`; `folder` is, or contains, `aclImdb` or the
    parquet files, and ImportError is raised if these need pyarrow, which is missing.

    Returns:
        x (n,) int64, bytes + 1; in "s4" and "paramixer" see `Task.input.symbols`. y () int64, 1 for
        good reviews.
    """
    check_choice("lra_text", "variant", variant, VARIANTS)
    place, files = _find(Path(folder))
    level = {"s4": "characters", "paramixer": "printed"}.get(variant, "bytes")
    store = prepare(
        store_path(place, stores, f"text-{level}"),
        {"task": "text", "level": level},
        files or [place / name for name in _FOLDERS],
        lambda: _content(place, files, level),
        progress,
    )
    learnt, test = (in_groups(store, [part]) for part in range(2))
    train, validation = _split(store, learnt) if variant == "honest" else (learnt, test)
    reading, tokens = _reading(store, variant)
    return stored_task(
        "text",
        variant,
        store,
        (train, validation, test),
        reading,
        tokens,
        CLASSES,
        pad_to=reading.length if variant == "paramixer" else None,
        masked=variant != "paramixer",
        validation_is_test=variant != "honest",
        **comparison("text", variant, VARIANTS),
    )


def _find(folder: Path) -> tuple[Path, list[Path]]:
    """The folder of the data, and the parquet files if it has these."""
    for name in ("", "plain_text", "imdb", "imdb/plain_text"):
        files = [sorted((folder / name).glob(f"{part}*.parquet")) for part in PARTS]
        if all(files):
            return folder / name, [file for part in files for file in part]
    return find_folder("lra_text", folder, ("aclImdb", "imdb"), _FOLDERS, _ORIGIN), []


def _split(store: Store, learnt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    chosen = carve(store.labels[learnt], VALIDATION_SHARE, seed=0)
    return learnt[~chosen], learnt[chosen]


def _reading(store: Store, variant: str) -> tuple[Reading, Tokens]:
    if variant == "s4":
        table, symbols = character_table(store, _LEAST_COUNT_S4)
        reading = Reading(table, _LENGTH_S4 - 1, suffix=(EOS,))
        return reading, Tokens(len(symbols), padding=0, symbols=symbols)
    if variant == "paramixer":
        symbols = (*map(chr, range(32, 127)), "<pad>", "<cls>")
        table = (torch.arange(256) - 32).clamp(0, 94)
        reading = Reading(table, _LENGTH_PARAMIXER, prefix=(96,))
        return reading, Tokens(97, padding=95, symbols=symbols)
    return byte_reading(_LENGTH), BYTES


def _content(place: Path, files: list[Path], level: str) -> Content:
    reviews = _parquet_reviews(files) if files else _folder_reviews(place)
    encoders: dict[str, Encoder] = {
        "bytes": byte_tokens,
        "characters": lambda text: character_tokens(text)[: _LENGTH_S4 - 1],
        "printed": lambda text: byte_tokens(str(text).encode()),
    }
    encode = encoders[level]
    rows = (Row((encode(text),), label, part) for text, label, part in reviews)
    return Content(rows, PARTS, 2**16 if level == "characters" else 256)


def _folder_reviews(place: Path) -> Iterator[tuple[bytes, int, int]]:
    for part, name in enumerate(PARTS):
        for label, sentiment in enumerate(_SENTIMENTS):
            for path in sorted((place / name / sentiment).glob("*.txt")):
                yield path.read_bytes(), label, part


def _parquet_reviews(files: list[Path]) -> Iterator[tuple[bytes, int, int]]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ImportError(
            "lra_text: parquet files need the package pyarrow, which is not installed. "
            "Run: pip install pyarrow, or use the folders of aclImdb"
        ) from error
    for path in files:
        part = next(i for i, name in enumerate(PARTS) if path.name.startswith(name))
        table = parquet.read_table(path, columns=["text", "label"])
        columns = (table.column(name).to_pylist() for name in ("text", "label"))
        for number, (text, label) in enumerate(zip(*columns, strict=True)):
            where = f"{path}, row {number}"
            yield text.encode(), read_label("lra_text", where, label, CLASSES), part
