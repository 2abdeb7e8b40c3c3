"""Small packages in the exact formats of those that bring the data of the mini tasks."""

import bz2
import gzip
import inspect
import io
import lzma
import random
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from paramixer import tasks
from paramixer.tasks import mini_novels, mini_texts


def all_variants():
    """Name and settings of every small task."""
    for name in tasks.names():
        if name.startswith("mini-"):
            maker = tasks.maker(name)
            if "variant" not in inspect.signature(maker).parameters:
                yield name, {}
                continue
            for variant in maker.__globals__["VARIANTS"]:
                yield name, {"variant": variant}


def write_packages(folder):
    """All that is read from archives; the other small tasks come with this project's extras."""
    write_deb(folder / "dataset-fashion-mnist_0_all.deb", fashion())
    write_deb(folder / "r-cran-modeldata_1.1.0-1_all.deb", foods())
    write_deb(folder / "r-cran-janeaustenr_1.0.0-1_all.deb", novels())
    write_deb(folder / "r-bioc-biostrings_2.66.0-1_amd64.deb", genome())
    write_zip(folder / "sktime-1.2.0-py3-none-any.whl", plaid())
    write_zip(folder / "vaderSentiment-0.5.zip", vader())


def write_deb(path, files):
    data = tar_of({f"./{name}": content for name, content in files.items()}, "xz")
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data}
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in members.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)


def tar_of(files, compression):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as file:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def fashion():
    """20 and 3 pictures of each kind; one picture is in both parts."""
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (230, 28, 28), dtype=np.uint8)
    pictures[229] = pictures[0]
    labels = np.tile(np.arange(10, dtype=np.uint8), 23)
    place = "usr/share/datasets/fashion-mnist/{}-{}-ubyte.gz"
    return {
        place.format(part, kind): gzip.compress(idx(array[rows]))
        for part, rows in (("train", slice(200)), ("t10k", slice(200, None)))
        for kind, array in (("images-idx3", pictures), ("labels-idx1", labels))
    }


def idx(array):
    return struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def foods():
    def table(part, count):
        return {
            "product": [f"B{part}{number}".encode() for number in range(count)],
            "review": [words(part, number, 10 + 10 * number).encode() for number in range(count)],
            "score": [1 + number % 2 for number in range(count)],
        }

    tables = {"training_data": table("training", 60), "testing_data": table("testing", 20)}
    tables["testing_data"]["review"][0] = tables["training_data"]["review"][0]
    return r_package("modeldata", tables)


def novels():
    """Every chapter consists of its own word."""
    texts = {}
    for novel in mini_novels.NOVELS:
        lines = ["TITLE", "", "by its author", ""]
        for chapter in range(1, 13):
            lines += [f"CHAPTER {chapter}", ""] + [f"{novel}{chapter} and so on;"] * 150
        texts[novel] = [line.encode() for line in lines]
    return r_package("janeaustenr", texts)


def genome():
    """Forty genes on every chromosome, one of them twice, and what is left out."""
    draw = random.Random(0)
    records = []
    for chromosome in ("2L", "2R", "3R", "3L", "X", "4", "Uextra"):
        for gene in range(40):
            start = 3000 * gene + 1001
            place = f"chr{chromosome}:{start}-{start + 1999}"
            text = "".join(draw.choices("acgt", (4, 3, 2, 1), k=2000))
            header = f">NM_1_up_2000_chr{chromosome}_{start}_f {place}"
            lines = [text[begin : begin + 50] for begin in range(0, 2000, 50)]
            records += ["\n".join([header, *lines])] * (2 if gene == 5 else 1)
    records.append(">NM_2_up_2000_chr3R_-1646_f chr3R:-1646-353\n" + "acgtn" * 70)
    name = "usr/lib/R/site-library/Biostrings/extdata/dm3_upstream2000.fa.gz"
    return {name: gzip.compress("\n".join(records).encode() + b"\n")}


def plaid():
    draw = random.Random(0)
    files = {}
    for part in ("TRAIN", "TEST"):
        lines = ["\ufeff# a comment with @ and :", "@problemName PLAID", "@data"]
        for number in range(110):
            values = [f"{draw.gauss(0, 0.1 + 20 * (number % 7)):.5g}" for _ in range(5 + number)]
            lines.append(f"{','.join(values)}:{number % 11}")
        name = f"sktime/datasets/data/PLAID/PLAID_{part}.ts"
        files[name] = ("\n".join(lines) + "\n").encode()
    return files


def vader():
    """Forty documents of three sentences each in every file; one sentence is in it twice."""
    files = {}
    for source in mini_texts.SOURCES:
        lines = [
            f"{document}_{sentence}\t{(-1) ** document / 2}\t{source} {document} {sentence} \u00e9"
            for document in range(40)
            for sentence in range(3)
        ]
        lines.append(lines[-1])
        files[f"hutto_ICWSM_2014/{source}_GroundTruth.txt"] = "\r\n".join(lines).encode()
    name = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
    return {name: tar_of(files, "gz")}


def words(part, number, count):
    draw = random.Random(f"{part} {number}")
    return "".join(draw.choices("abcdefghij ", k=count))


COMPRESSIONS = (
    zlib.compress,
    lambda data: b"2" + bz2.compress(data),
    lambda data: b"Z" + lzma.compress(data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}]),
    lambda data: b"0" + data,
)


def r_package(name, objects):
    """`Rdata.rdx` and `Rdata.rdb` as R's lazy loading has them."""
    database, places = b"", {}
    for number, (key, value) in enumerate(objects.items()):
        data = r_serialized(value)
        block = struct.pack(">i", len(data)) + COMPRESSIONS[number % len(COMPRESSIONS)](data)
        places[key] = [len(database), len(block)]
        database += block
    index = gzip.compress(r_serialized({"variables": places, "references": {}, "compressed": [1]}))
    folder = f"usr/lib/R/site-library/{name}/data"
    return {f"{folder}/Rdata.rdx": index, f"{folder}/Rdata.rdb": database}


def r_serialized(value):
    """A dict as a list with names, lists as vectors of text, integers or real numbers."""
    return b"X\n" + struct.pack(">4i", 3, 0x040200, 0x030500, 5) + b"UTF-8" + _r(value)


def _r(value):
    if isinstance(value, dict):
        items = b"".join(_r(one) for one in value.values())
        symbol = struct.pack(">i", 1) + _r_string(b"names")
        names = struct.pack(">i", 2 | 1 << 10) + symbol + _r([key.encode() for key in value])
        end = struct.pack(">i", 254)
        return struct.pack(">2i", 19 | 1 << 9, len(value)) + items + names + end
    if value and isinstance(value[0], float):
        return struct.pack(f">2i{len(value)}d", 14, len(value), *value)
    if value and isinstance(value[0], int):
        return struct.pack(f">2i{len(value)}i", 13, len(value), *value)
    return struct.pack(">2i", 16, len(value)) + b"".join(map(_r_string, value))


def _r_string(text):
    if text is None:
        return struct.pack(">2i", 9, -1)
    return struct.pack(">2i", 9 | 1 << 15, len(text)) + text
