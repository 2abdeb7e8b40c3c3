"""Square matrices: read from files, or made of what pip packages bring."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

LUMA = (0.2989, 0.5870, 0.1140)  # red, green and blue of a grey value
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm")


def read(path: Path) -> np.ndarray:
    """The matrix in a file, float64: an image's grey values (its middle square), .npy, .mtx, .csv.

    A CSV file lists the edges of an undirected graph: two node names, and a weight if it has one,
    a line; nodes come in the order of their names.

    Raises:
        ValueError: the file is of another kind.
    """
    kind = path.suffix.lower()
    if kind == ".npy":
        return np.load(path)
    if kind == ".mtx":
        from scipy.io import mmread

        matrix = mmread(path)
        return np.asarray(matrix.todense() if hasattr(matrix, "todense") else matrix)
    if kind == ".csv":
        return _adjacency(path)
    if kind in IMAGES:
        from PIL import Image

        with Image.open(path) as image:
            grey = np.asarray(image.convert("RGB"), dtype=np.float64) @ LUMA
        side = min(grey.shape)
        top, left = ((size - side) // 2 for size in grey.shape)
        return grey[top : top + side, left : left + side]
    raise ValueError(
        f"factorize: file must be an image, .npy, .mtx or a .csv of edges (got {path.name!r})"
    )


def _adjacency(path: Path) -> np.ndarray:
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if any(len(row) not in (2, 3) for row in rows):
        raise ValueError(
            f"factorize: {path.name} must have two nodes, and a weight or none, a line"
        )
    edges = [(row[0].strip(), row[1].strip(), float(row[2]) if row[2:] else 1.0) for row in rows]
    places = {
        name: place for place, name in enumerate(sorted({n for edge in edges for n in edge[:2]}))
    }
    matrix = np.zeros((len(places), len(places)))
    for source, target, weight in edges:
        matrix[places[source], places[target]] = matrix[places[target], places[source]] = weight
    return matrix


def _half(image: np.ndarray) -> np.ndarray:
    height, width = image.shape
    return image.reshape(height // 2, 2, width // 2, 2).mean((1, 3))


def _camera() -> np.ndarray:
    from skimage import data

    return _half(data.camera().astype(np.float64))


def _astronaut() -> np.ndarray:
    from skimage import data

    return _half(data.astronaut() @ np.array(LUMA))


def _gradient(image: np.ndarray) -> np.ndarray:
    return np.hypot(*np.gradient(image))


def _karate() -> np.ndarray:
    import networkx

    graph = networkx.karate_club_graph()
    return networkx.to_numpy_array(graph, nodelist=sorted(graph), weight=None)


def _lesmis() -> np.ndarray:
    import networkx

    graph = networkx.les_miserables_graph()
    return networkx.to_numpy_array(graph, nodelist=sorted(graph))


def _triangles() -> np.ndarray:
    import networkx

    graph = networkx.triangular_lattice_graph(9, 18)
    return networkx.to_numpy_array(graph, nodelist=sorted(graph))


def _iris_similarity() -> np.ndarray:
    from sklearn.datasets import load_iris
    from sklearn.metrics.pairwise import rbf_kernel

    return rbf_kernel(load_iris().data, gamma=1.0)


def _digits() -> np.ndarray:
    from sklearn.datasets import load_digits

    return np.cov(load_digits().data.T)


def _breast_cancer() -> np.ndarray:
    from sklearn.datasets import load_breast_cancer

    return np.corrcoef(load_breast_cancer().data.T)


STUDY: dict[str, Callable[[], np.ndarray]] = {
    "image_camera": _camera,
    "image_astronaut": _astronaut,
    "gradient_camera": lambda: _gradient(_camera()),
    "gradient_astronaut": lambda: _gradient(_astronaut()),
    "network_karate": _karate,
    "network_lesmis": _lesmis,
    "mesh_triangles": _triangles,
    "dense_graph_iris": _iris_similarity,
    "covariance_digits": _digits,
    "covariance_breastcancer": _breast_cancer,
}
"""The matrices of the study, by name: kind, then origin."""
