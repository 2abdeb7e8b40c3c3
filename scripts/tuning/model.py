"""How long a plan of the CUDA key should take: bytes, instructions, and the slowest of the two.

A launch moves bytes of device memory and L2, reads and writes shared memory, and issues
instructions; each takes its bytes or instructions over a rate that a GPU was seen to reach, and the
launch takes the longest of them and a quarter of the others, and a launch 2 us more.

Instructions are counted in the machine code of the loops (sm_90, nvcc 13.0; `loops` in sass.py
prints them): those on the path that a plain call takes, without the residual.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from math import ceil
from typing import Any

Launch = dict[str, Any]  # as plans.cpp prints it

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Machine:
    """Rates that programs reach: units per microsecond."""

    name: str
    device: float  # bytes, 90 % of what a copy reaches
    l2: float = 5e6
    shared: float = 0.8 * 132 * 128 * 1755  # bytes: multiprocessors, bytes a clock, MHz
    instructions: float = 0.7 * 132 * 128 * 1755  # of one lane
    mma: float = 0.7 * 132 * 1280 * 1755  # multiply-adds of mma.sync


MACHINES = (Machine("H100", device=2.7e6), Machine("H200", device=3.9e6))
LAUNCH_MICROSECONDS = 2.0


@dataclass(frozen=True)
class TileCounts:
    """Instructions of one lane in the kernels of tiles, for a quad of channels of a row."""

    pair: float  # two factors of three links, `segment` rows
    pair_back: float
    short_back: float  # 4 rows
    three: float  # one factor of three links
    three_back: float
    link: float  # forward: a link of a factor of any
    dot: float  # backward: a link of the dots
    back: float  # backward: a link of the gradient
    row: float = 28  # what each of these takes besides, a row
    tile: float = 400  # a warp's beginning
    find: float = 40  # where a row lies
    load: float = 20  # 16 bytes
    store: float = 19
    stage: float = 17  # a weight of three links
    dots: float = 23  # a dot, written


@dataclass(frozen=True)
class ProductCounts:
    """The same in the kernels of single products, for one access of 16 bytes."""

    group: float  # of four links
    access: float = 120
    back_group: float = 0  # of four links, the gradient of the value
    back_access: float = 0  # with the dots of up to eight links
    back_row: float = 350  # of every lane that a row has


@dataclass(frozen=True)
class WindowCounts:
    """The same in the kernels with a window, for 16 bytes of a row and four links, or one."""

    near: tuple[float, float]
    far: tuple[float, float]
    near_dots: tuple[float, float]
    far_dots: tuple[float, float]
    row: float = 45  # what each takes besides
    stage: float = 30  # a weight
    dots: float = 26  # a dot, cleared and written


@dataclass(frozen=True)
class BandCounts:
    """Instructions of a warp in the band kernels, for K links."""

    multiply: float  # 16 rows and 64 channels
    compose: float  # 32 rows
    unpack: float  # 32 rows
    matrices: int  # mma.m16n8k16 of 16 rows and 64 channels
    copy: float = 55  # of a word of weights of 32 rows
    load_store: float = 460  # 32 rows, a pass


@dataclass(frozen=True)
class Counts:
    """All of them; by bytes of an element, and of bands by K."""

    segment: int = 9
    tiles: dict[int, TileCounts] = field(
        default_factory=lambda: {
            4: TileCounts(445, 1150, 640, 37, 98, 16, 45, 24),
            2: TileCounts(525, 1285, 730, 48, 142, 21, 50, 32),
        }
    )
    products: dict[int, ProductCounts] = field(
        default_factory=lambda: {
            8: ProductCounts(113, back_group=119, back_access=220),
            4: ProductCounts(113, back_group=119, back_access=220),
            2: ProductCounts(225, back_group=236, back_access=564),
        }
    )
    windows: dict[int, WindowCounts] = field(
        default_factory=lambda: {
            4: WindowCounts((31, 13), (70, 26), (65, 24), (130, 45)),
            2: WindowCounts((79, 25), (118, 38), (117, 39), (184, 64)),
        }
    )
    bands: dict[int, BandCounts] = field(
        default_factory=lambda: {
            3: BandCounts(273, 250, 90, 16),
            5: BandCounts(273, 195, 85, 16),
            7: BandCounts(331, 283, 105, 24),
            9: BandCounts(331, 426, 134, 24),
        }
    )


@dataclass
class Cost:
    """What one launch or several need."""

    device: float = 0.0  # bytes
    l2: float = 0.0
    shared: float = 0.0
    instructions: float = 0.0
    mma: float = 0.0  # multiply-adds
    launches: int = 1

    def microseconds(self, machine: Machine) -> float:
        """The expected time, were this one launch."""
        resources = ("device", "l2", "shared", "instructions", "mma")
        times = [getattr(self, name) / getattr(machine, name) for name in resources]
        rest = sum(times) - max(times)
        return max(times) + rest / 4 + LAUNCH_MICROSECONDS * self.launches

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Cost)))


@dataclass(frozen=True)
class Chain:
    """A case of the tables: M factors of K links over (B, N, D)."""

    batch: int
    length: int
    channels: int
    protocol: str
    links: int
    factors: int
    dtype: str

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return BYTES[self.dtype]

    @property
    def values(self) -> float:
        """Bytes of V."""
        return self.batch * self.length * self.channels * self.size

    def weights(self, factors: int) -> float:
        """Bytes that bring the weights of so many factors, in sectors of 32 bytes.

        Those of a row lie together, at any place in a sector, and its next factors' behind them.
        """
        wanted = factors * self.links * self.size
        row = self.factors * self.links * self.size
        return self.batch * self.length * min(row, wanted + 32 - self.size)

    def floor(self, backward: bool = False) -> float:
        """Bytes of device memory that every way must move: each input and output once."""
        values, weights = (5, 3) if backward else (2, 1)
        every_weight = self.batch * self.length * self.factors * self.links * self.size
        return values * self.values + weights * every_weight


def on_chip(chain: Chain, launch: Launch) -> tuple[float, float, float]:
    """Rows on chip of all groups of channels, the groups of a block, and rows read for one."""
    read = launch["tiles"] * launch["rows"] / launch["ring"]
    groups = ceil(chain.channels / launch["channels"])
    return chain.batch * chain.length * read * groups, groups / launch["splits"], read


def tile_rows(chain: Chain, launch: Launch, counts: Counts, loads: int) -> float:
    """Instructions that bring a row of a group of channels on chip, and back."""
    each = counts.tiles[chain.size]
    _, shared_by, read = on_chip(chain, launch)
    pieces = launch["channels"] * chain.size / 16
    once = each.tile * launch["threads"] / launch["rows"] + each.find
    if chain.links == 3:  # a power of two of threads, at most a warp, stages a row
        wanted = 3 * launch["factors"]
        lanes = min(32, 1 << (wanted - 1).bit_length())
        once += each.stage * lanes * ceil(wanted / lanes)
    return once / shared_by + pieces * (loads * each.load + each.store / read)


def states(
    chain: Chain, launch: Launch, counts: Counts, but_last: bool = False
) -> tuple[float, float]:
    """Instructions and bytes of shared memory of the forward turns, a quad of a row."""
    each, size, links, segment = counts.tiles[chain.size], chain.size, chain.links, counts.segment
    pairs, walks = launch["pairs"], launch["walks"] / (4 * launch["rows"])
    single = launch["factors"] - 2 * pairs
    if but_last and single > 0:
        single -= 1
    elif but_last:
        # Short walks are the last ones.
        walks, pairs = walks if launch["short"] else walks * (pairs - 1) / pairs, pairs - 1
    if links != 3:
        return single * (each.row + each.link * links), single * 4 * size * (links + 2)
    # A thread makes as many rows of a single factor as of a segment, whether there are so many.
    single_rows = single * segment * launch["threads"] / (4 * launch["rows"])
    moved = pairs * (4 * size * (2 * segment + 6) + 24 * (segment + 4)) / segment
    moved += single * (16 * size + 12)
    return walks * each.pair + single_rows * each.three, moved


def forward_tiles(chain: Chain, launch: Launch, counts: Counts) -> Cost:
    """`chain_tile` over a sweep."""
    rows, shared_by, read = on_chip(chain, launch)
    quads = launch["channels"] / 4
    weights = chain.weights(launch["factors"])
    groups = ceil(chain.channels / launch["channels"])
    again = groups / shared_by if chain.links == 3 else groups
    made, moved = states(chain, launch, counts)
    return Cost(
        device=chain.values * (1 + read) + weights,
        l2=chain.values * (1 + read) + weights * again * read,
        shared=rows * quads * (8 * chain.size + moved),
        instructions=rows * (tile_rows(chain, launch, counts, 1) + quads * made),
    )


def in_fours(links: int, counts: tuple[float, float]) -> float:
    """Instructions of so many links, four at a time and the rest one by one."""
    return links // 4 * counts[0] + links % 4 * counts[1]


def window_links(chain: Chain, launch: Launch) -> tuple[int, int, int]:
    """Near links, far ones, and how many fours they are."""
    near, far = launch["near"], chain.links - launch["near"]
    return near, far, ceil(near / 4) + ceil(far / 4)


def mix_window(chain: Chain, launch: Launch, counts: Counts, transpose: bool = False) -> Cost:
    """`mix_window` of one factor, or of its transpose."""
    each, tiles = counts.windows[chain.size], counts.tiles[chain.size]
    near, far, fours = window_links(chain, launch)
    window, shared_by, read = on_chip(chain, launch)
    rows = window / read
    weights = chain.weights(1)
    lanes = 1 << (chain.links - 1).bit_length()
    once = read * tiles.find + each.stage * lanes * (read if transpose else 1)
    # Weights of a transpose come from the window's rows, and a sector each for far links.
    staged = weights * read + chain.batch * chain.length * 32 * far if transpose else weights
    return Cost(
        device=2 * chain.values + weights,
        l2=chain.values * (1 + read + far) + staged * launch["splits"],
        shared=rows * 64 * (near + read + fours),
        instructions=rows
        * (
            once / shared_by
            + 4 * (read * tiles.load + each.row)
            + 4 * (in_fours(near, each.near) + in_fours(far, each.far))
        ),
    )


def dot_window(chain: Chain, launch: Launch, counts: Counts) -> Cost:
    """`dot_window` of one factor, and the sum of its dots over blocks."""
    each, tiles = counts.windows[chain.size], counts.tiles[chain.size]
    near, far, fours = window_links(chain, launch)
    window, shared_by, read = on_chip(chain, launch)
    rows = window / read
    all_dots = launch["splits"] * chain.batch * chain.length * chain.links * 4
    once = read * tiles.find + each.dots * chain.links
    return Cost(
        device=2 * chain.values + 2 * all_dots + chain.weights(1),
        l2=chain.values * (1 + read + far) + 2 * all_dots,
        shared=rows * (64 * (near + read) + 32 * fours),
        instructions=rows
        * (
            once / shared_by
            + 4 * (read * tiles.load + each.row)
            + 4 * (in_fours(near, each.near_dots) + in_fours(far, each.far_dots))
        ),
        launches=3,
    )


def bands(chain: Chain, launch: Launch, counts: Counts) -> Cost:
    """`band` over a pass."""
    each = counts.bands[chain.links]
    merged = 3 if chain.links == 3 else 2
    taps = (chain.links - 1) * ((1 << merged) - 1) + 1
    words = (merged * chain.links + 2) // 2
    read = launch["tiles"] * launch["rows"] / launch["ring"]
    groups = ceil(chain.channels / 64)
    rows = chain.batch * chain.length * read * groups
    number = ceil(launch["factors"] / merged)
    per_band = 2 * each.multiply + each.compose + each.unpack + each.copy * words
    steps = each.matrices // 8
    weights = chain.weights(launch["factors"])
    return Cost(
        device=chain.values * (1 + read) + weights,
        l2=chain.values * (1 + read) + weights * groups * read,
        shared=rows * (256 + number * (128 * (steps + 1) + 6.4 * taps + 12 * words)),
        instructions=rows * (each.load_store + number * per_band),
        mma=rows / 16 * number * each.matrices * 16 * 8 * 16,
    )


def product(chain: Chain, counts: Counts, alone: bool) -> Cost:
    """`mix` of one factor; between tiles and bands its result is copied."""
    each = counts.products[chain.size]
    accesses = chain.values / 16
    copy = 0 if alone else 2 * chain.values
    return Cost(
        device=2 * chain.values + chain.weights(1) + copy,
        l2=(chain.links + 1) * chain.values + chain.weights(1) + copy,
        instructions=accesses * (each.access + each.group * ceil(chain.links / 4)),
        launches=1 if alone else 2,
    )


def backward_tiles(chain: Chain, launch: Launch, counts: Counts) -> Cost:
    """`chain_tile_backward` over a sweep, and the sum of its dots over blocks."""
    each, size, links = counts.tiles[chain.size], chain.size, chain.links
    factors, pairs, segment = launch["factors"], launch["pairs"], counts.segment
    rows, shared_by, read = on_chip(chain, launch)
    quads = launch["channels"] / 4
    single = factors - 2 * pairs
    made, moved = states(chain, launch, counts, but_last=True)
    if links == 3:
        walks = launch["walks"] * each.pair_back + launch["short"] * each.short_back
        made += walks / (4 * launch["rows"]) + single * each.three_back
        moved += pairs * (4 * size * (3 * segment + 12) + 24 * (segment + 6)) / segment
        moved += single * (4 * size * 9 + 12)
    else:
        made += factors * (links * (each.dot / read + each.back) + 2 * each.row)
        moved += factors * 4 * size * (2 * links + 2)
    per_row = tile_rows(chain, launch, counts, 2) + quads * made
    per_row += each.dots * factors * links / (shared_by * read)
    all_dots = launch["splits"] * chain.batch * chain.length * factors * links * 4
    weights = chain.weights(factors)
    again = launch["splits"] if links == 3 else 2 * ceil(chain.channels / launch["channels"])
    values = chain.values * (1 + 2 * read) + 2 * all_dots + weights
    return Cost(
        device=values + weights,
        l2=values + weights * again * read,
        shared=rows * quads * (12 * size + moved),
        instructions=rows * per_row,
        launches=3,
    )


def backward_product(chain: Chain, counts: Counts) -> Cost:
    """`mix_backward` of one factor."""
    each = counts.products[chain.size]
    accesses = chain.values / 16
    lanes = min(8, chain.channels * chain.size / 16)
    per_access = each.back_access * ceil(chain.links / 8) + each.back_group * ceil(chain.links / 4)
    return Cost(
        device=3 * chain.values + 2 * chain.weights(1),
        l2=(2 * chain.links + 2) * chain.values + 2 * chain.weights(1),
        instructions=accesses * per_access + chain.batch * chain.length * lanes * each.back_row,
    )


def forward_costs(chain: Chain, launches: list[Launch], counts: Counts) -> list[Cost]:
    """Of every launch of a forward plan."""
    alone = all(launch["way"] == "product" for launch in launches)
    ways = {"tiles": forward_tiles, "bands": bands, "windows": mix_window}
    return [
        product(chain, counts, alone)
        if launch["way"] == "product"
        else ways[launch["way"]](chain, launch, counts)
        for launch in launches
    ]


def backward_costs(
    chain: Chain, launches: list[Launch], cuts: list[int], counts: Counts
) -> list[Cost]:
    """Of every launch of a backward plan, and of those that compute states between cuts again."""
    costs = []
    starts = {0, *cuts}
    for launch, after in zip(launches, [*launches[1:], None], strict=True):
        if launch["way"] == "product":
            costs.append(backward_product(chain, counts))
        elif launch["way"] == "windows":
            costs.append(mix_window(chain, launch, counts, transpose=True))
            costs.append(dot_window(chain, launch, counts))
        else:
            costs.append(backward_tiles(chain, launch, counts))
        if after is not None and after["first"] not in starts:
            # The state before the next sweep; in tiles like this one's, which is near enough.
            costs += forward_costs(chain, [launch], counts)
    return costs


def microseconds(costs: Iterable[Cost], machine: Machine) -> float:
    """Launch after launch."""
    return sum(cost.microseconds(machine) for cost in costs)
