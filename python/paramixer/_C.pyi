"""The extension module: facts about the loaded library. No tensor passes through it."""

import numpy as np
from numpy.typing import NDArray

class Sweep:
    @property
    def first(self) -> int: ...
    @property
    def factors(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def ring(self) -> int: ...
    @property
    def deal(self) -> int: ...
    @property
    def tile(self) -> int: ...
    @property
    def halo(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def bands(self) -> bool: ...
    @property
    def window(self) -> int: ...

def has_cuda() -> bool: ...
def cpu_instruction_set() -> str: ...
def chain_sweeps(length: int, links: int, offsets: list[int], residual: int) -> list[Sweep]: ...
def cuda_chain_sweeps(
    length: int, channels: int, links: int, offsets: list[int], residual: int, dtype: int
) -> list[Sweep]: ...
def chain_group(dtype: int) -> int: ...

LISTOPS_TOKENS: tuple[str, ...]

class ListOpsSamples:
    @property
    def tokens(self) -> NDArray[np.uint8]: ...
    @property
    def offsets(self) -> NDArray[np.int64]: ...
    @property
    def labels(self) -> NDArray[np.uint8]: ...
    @property
    def depths(self) -> NDArray[np.uint8]: ...
    def rows(self, chosen: list[int]) -> bytes: ...

def listops(
    seed: int,
    first: int,
    count: int,
    threads: int,
    max_depth: int,
    max_args: int,
    min_length: int,
    max_length: int,
    operator_probability: float,
    operators: list[str],
) -> ListOpsSamples: ...

class PathfinderOptions:
    size: int
    padding: int
    antialias: int
    segment_length: int
    thickness: float
    margins: list[int]
    continuity: float
    seed_distance: int
    marker_radius: float
    contour_length: int
    distractor_length: int
    distractors: int
    path_contrast: float
    distractor_contrast: float

def pathfinder_options(size: int, difficulty: str) -> PathfinderOptions: ...
def pathfinder(
    options: PathfinderOptions, seed: int, first: int, count: int, threads: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int32]]: ...
