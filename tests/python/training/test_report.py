import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from paramixer.training import write_json

SCRIPT = Path(__file__).parents[3] / "scripts" / "report.py"
PUBLISHED = [
    {"model": name, "value": value, "metric": metric, "variant": variant, "source": "a paper"}
    for name, value, metric, variant in (
        ("Ours", 39.57, "accuracy", "paramixer"),
        ("Other", 60.0, "error", "paramixer"),
        ("S4", 59.6, "accuracy", "s4"),
    )
]


@pytest.fixture(scope="module")
def script():
    return SimpleNamespace(**runpy.run_path(str(SCRIPT), run_name="report"))


def record(model, accuracy, *, seed=0, epochs=3, variant="paramixer", samples=90, **task):
    return {
        "task": {
            "name": "listops",
            "variant": variant,
            "length": 1999,
            "floors": {"majority class": 17.5, "root operator": 37.8},
            "published": PUBLISHED,
            "samples": [samples, 10, 100],
            "validation_is_test": False,
            **task,
        },
        "model": model,
        "seed": seed,
        "config": {
            "seeds": [seed],
            "out": f"runs/{model}",
            "data": {"batch_size": 8, "seed": seed, "workers": seed},
            "model": {"mixer": model, "seed": seed},
            "trainer": {"max_epochs": epochs, "devices": 1 + seed},
        },
        "parameters": 1000,
        "training": {"steps": 30, "cpu_seconds": 2.0, "epochs": [{}] * epochs},
        "chosen": {"epoch": 2},
        "git": "0" * 40,
        "test": {"accuracy": accuracy, "interval": [accuracy - 0.05, accuracy + 0.05]},
    }


def test_a_row_a_model_with_its_costs(script):
    def cost(length, milliseconds, operation="forward+backward"):
        figures = {"median_ms": milliseconds, "peak_mib": 8.0}
        return {"shape": [1, length, 64], "peer": "good", "operation": operation} | figures

    costs = [cost(1024, 1234.4), cost(8192, 5.0), cost(1024, 7.0, "forward"), cost(512, 9.0)]
    records = [record("bad", 0.4), record("good", 0.9, seed=0), record("good", 0.8, seed=1)]
    header, floors, good, bad = script.by_model(records, costs)
    assert [line[0] for line in (header, floors, good, bad)] == [
        "model",
        "highest floor",
        "good",
        "bad",
    ]
    assert floors[1] == "37.80 (root operator)"
    assert good[1:] == ["85.00 +- 7.07 (2 runs)", "1,234 / 5 / -", "8 / 8 / -"]
    assert bad[1:] == ["40.00 (35.0 to 45.0)", "", ""]
    assert script.markdown([header, floors, good, bad], []).startswith("| model | listops, ")


def test_seeds_become_mean_and_deviation(script):
    records = [record("chord", 0.4, seed=1), record("chord", 0.5, seed=2), record("cdil", 0.3)]
    [row] = script.table(records)
    assert row.task == "listops, paramixer, N = 1,999, 90 + 10 + 100"
    assert row.results == {"chord": "45.00 +- 7.07 (2 runs)", "cdil": "30.00 (25.0 to 35.0)"}
    assert row.floor == "37.80 (root operator)"


def test_what_is_not_comparable_is_marked(script):
    records = [
        record("chord", 0.4),
        record("chord", 0.5, epochs=7),
        record("chord", 0.6, variant="honest", validation_is_test=True),
        record("chord", 0.7, samples=91),
    ]
    rows = script.table(records)
    assert len(rows) == 3  # neither variants nor numbers of samples share a row
    honest, paramixer, _ = rows
    assert paramixer.results["chord"].endswith("; 50.00 (45.0 to 55.0)‡")
    assert paramixer.published == "40.00 (Other), 59.60 (S4)†"
    assert honest.results["chord"].endswith("§") and honest.published == "59.60 (S4)†"
    text = script.markdown(script.by_task(rows), [])
    assert all(note in text for note in script.NOTES.values())
    assert "‡" not in script.markdown(script.by_task([honest]), [])


def test_command_writes_both_forms(script, tmp_path, monkeypatch, capsys):
    for number in range(2):
        folder = tmp_path / "runs" / f"seed-{number}"
        folder.mkdir(parents=True)
        write_json(record("chord", 0.4 + number / 10, seed=number), folder / "record.json")
    unfinished = record("chord", 0.4)
    del unfinished["test"]
    (tmp_path / "runs" / "broken").mkdir()
    write_json(unfinished, tmp_path / "runs" / "broken" / "record.json")
    out = tmp_path / "tables" / "report"
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path / "runs"), "--out", str(out)])
    script.main()
    text = out.with_suffix(".md").read_text()
    assert text == capsys.readouterr().out.removesuffix("\n")
    assert "| 45.00 +- 7.07 (2 runs) |" in text and "broken" in text
    assert "| listops 1999, chord, seed 1 | 1,000 | 30 | 2 | 2 of 3 | 00000000 |" in text
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_no_runs(script, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="report: no finished run"):
        script.main()


def test_comparison_counts_wins_and_losses(script):
    lengths = {64: 0.6, 128: 0.38, 512: 0.1}
    records = [record("deep", accuracy, length=length) for length, accuracy in lengths.items()]
    records += [record("chord", 0.4, length=length) for length in (64, 128, 256)]
    text = "".join(script.comparison(records, "deep", "chord"))
    assert "deep beats chord on 1 of 2 tasks" in text
    assert "listops 64 +20.00, listops 128 -2.00~." in text and "intervals overlap" in text
    assert list(script.comparison(records)) == []


def test_lengths_are_drawn_where_there_are_several(script, tmp_path):
    picture = tmp_path / "lengths.png"
    script.draw_lengths([record("chord", 0.4)], picture)
    assert not picture.exists()
    script.draw_lengths([record("chord", 0.4), record("chord", 0.9, length=64)], picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
