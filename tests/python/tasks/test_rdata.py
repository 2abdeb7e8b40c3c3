import struct

import pytest
from mini_support import r_package, r_serialized
from paramixer.tasks.rdata import deserialize, read_object

OBJECTS = {
    "numbers": [1, -2, 3],
    "reals": [0.5, -1e300],
    "texts": [b"one", None, "caf\u00e9".encode(), b""],
    "table": {"text": [b"a", b"b"], "number": [7, 8], "nested": {"x": [0.25]}},
    "empty": [],
}


@pytest.mark.parametrize("name", OBJECTS)  # every one is compressed in another way
def test_objects_come_back(name):
    assert read_object(name, *r_package("any", OBJECTS).values()) == OBJECTS[name]


def test_an_object_that_is_not_there():
    with pytest.raises(ValueError, match=r"rdata: name must be one of numbers, .* \(got 'chess'\)"):
        read_object("chess", *r_package("any", OBJECTS).values())


def test_attributes_and_repeated_symbols():
    integers = struct.pack(">4i", 13 | 1 << 9, 2, 1, 2)
    symbol = struct.pack(">3i", 1, 9, 6) + b"levels"
    levels = struct.pack(">4i", 16, 1, 9, 5) + b"great"
    again = struct.pack(">2i", 2 | 1 << 10, 255 | 1 << 8) + levels  # levels, a second time
    factor = integers + struct.pack(">i", 2 | 1 << 10) + symbol + levels + again
    data = r_serialized([])[: -struct.calcsize(">2i")] + factor + struct.pack(">i", 254)
    assert deserialize(data) == [1, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"A\n1 2 3", r"must begin with b'X\\n' \(got b'A\\n'\)"),
        (r_serialized([1, 2, 3])[:-1], r"must have 12 bytes more \(got 11\)"),
        (r_serialized([])[:-8] + struct.pack(">i", 3), "items of kind 3"),
    ],
)
def test_other_data_are_refused(data, message):
    with pytest.raises(ValueError, match=f"rdata: .*{message}"):
        deserialize(data)
