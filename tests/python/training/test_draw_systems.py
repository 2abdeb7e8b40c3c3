"""scripts/draw_systems.py, with as little training as there can be."""

from pathlib import Path

import pytest
import torch
from paramixer import tasks

SCRIPTS = Path(__file__).parents[3] / "scripts"
ONE_OF_EACH_KIND = ("monarch", "psf-attention", "chord-mixer", "lama", "sparse-factorization")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return tasks.load("mini-digits", folder=tmp_path_factory.mktemp("data"))


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import draw_systems

    for name, least in {"EPOCHS": 1, "BATCH": 600, "ITERATIONS": 50}.items():
        monkeypatch.setattr(draw_systems, name, least)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield draw_systems
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", ONE_OF_EACH_KIND)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's, of small loaders
def test_pages_are_drawn(page, script, task, tmp_path):
    picture, maps = script.PAGES[page](task)
    assert all(
        matrix.shape[1] == script.LENGTH and matrix.isfinite().all() for matrix in maps.values()
    )
    script.draw(tmp_path / "page.png", picture, maps)
    assert (tmp_path / "page.png").stat().st_size > 1000


def test_every_page_has_its_picture(script):
    pages = {page.stem for page in SCRIPTS.with_name("docs").glob("*.md")}
    assert set(script.PAGES) == pages - {"README"}


def test_influence_is_the_norm_of_the_derivative(script):
    linear = torch.nn.Linear(3, 3)
    block = lambda x, valid, lengths: linear(x).roll(-1, 1)
    shown = script.influence([block], torch.randn(1, 4, 3))
    expected = linear.weight.norm() * torch.eye(4).roll(-1, 0)
    torch.testing.assert_close(shown, expected.detach())
