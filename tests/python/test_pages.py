"""docs/: its examples run, its figures are what is counted, its links lead somewhere."""

import re
import warnings
from pathlib import Path

import paramixer
import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LARGEST_PICTURE = 150_000  # bytes
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def costs(monkeypatch, one_thread):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import count_costs

    return count_costs


class Names(dict):
    """Those of the README, whose last example takes the reader's matrix, and rows to multiply."""

    def __missing__(self, name):
        if name != "matrix":
            raise KeyError(name)
        self["x"] = torch.randn(2, 3)
        return torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def run(page, names):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, page.name, "exec"), names)


@every_page
def test_examples_run(page, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(page, {})


def test_examples_of_the_readme_run(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)

    names = Names()
    run(ROOT / "README.md", names)
    assert (tmp_path / "matrix.safetensors").exists()


def test_formulas_are_what_is_counted(costs):
    for system in costs.SYSTEMS:
        module = system.make(costs.LENGTH)
        assert system.value(system.parameters) == costs.count_parameters(module), system.call
        counted = costs.count_multiply_adds(module, costs.LENGTH)
        assert system.value(system.multiply_adds) == pytest.approx(counted), system.call


def test_a_call_is_what_is_made(costs):
    names = vars(costs.nn) | vars(costs.opponents)
    for system in costs.SYSTEMS:
        assert repr(eval(system.call, names)) == repr(system.make(costs.LENGTH))


def test_tables_are_those_of_the_command(costs):
    """But for what autograd keeps, which depends a little on the version of PyTorch."""
    for page, table in costs.tables().items():
        text = (ROOT / "docs" / f"{page}.md").read_text()
        written = re.search(f"{costs.BEGIN}\n(.*?)\n{costs.END}", text, re.DOTALL)[1]
        for line, expected in zip(written.splitlines(), table.splitlines(), strict=True):
            *cells, kept = line.strip("| ").split(" | ")
            *expected_cells, expected_kept = expected.strip("| ").split(" | ")
            assert cells == expected_cells
            assert numbers(kept) == pytest.approx(numbers(expected_kept), rel=0.1)


def numbers(text):
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]


def test_numbers_of_a_factorization():
    offsets = paramixer.links.chord(1024)
    sizes = {"N": 1024, "M": len(offsets), "K": len(offsets[0])}
    text = (ROOT / "docs" / "sparse-factorization.md").read_text()
    rows = re.findall(r"`([3NMK*]+)` \| ([\d,]+)", text)
    assert len(rows) == 3
    for formula, number in rows:
        assert eval(formula, {}, sizes) == numbers(number)[0]


@every_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]*)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings], link


def test_the_first_page_leads_to_all_others():
    first = (ROOT / "docs" / "README.md").read_text()
    for page in PAGES:
        assert page.name == "README.md" or f"]({page.name})" in first


def test_pictures_are_small():
    for page in PAGES:
        picture = page.with_suffix(".png")
        assert page.name == "README.md" or picture.stat().st_size < LARGEST_PICTURE, picture.name
