"""scripts/tuning: what is said of CUDA kernels that do not run here."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from paramixer import info, links

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from tuning import model, plans, predictions, resources, sass, sweep  # noqa: E402

REPORT = """\
ptxas info    : Compiling entry function '_ZN9paramixer4cuda10mix_kernelIfiLi4ELb1EEEv' for 'sm_90'
ptxas info    : Function properties for _ZN9paramixer4cuda10mix_kernelIfiLi4ELb1EEEv
    0 bytes stack frame, {spills} bytes spill stores, 0 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, 16 bytes smem, 728 bytes cmem[0]
"""


def entry(tmp_path, registers=42, spills=0):
    report = tmp_path / "kernels.cu.o.resources"
    report.write_text(REPORT.format(registers=registers, spills=spills))
    (found,) = resources.read(report)
    return found


def test_the_report_of_ptxas_is_read(tmp_path):
    found = entry(tmp_path)
    assert (found.kernel, found.architecture) == ("mix_transpose f32 x4 32-bit", "sm_90")
    assert (found.registers, found.shared, found.spills()) == (42, 16, False)
    assert entry(tmp_path, spills=8).spills()


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "blocks"),
    [
        (32, 256, 0, 8),  # all 2048 threads
        (33, 256, 0, 6),  # 40 registers: 51 warps, 12 on each scheduler
        (128, 256, 0, 2),
        (129, 256, 0, 1),
        (255, 1024, 0, 0),
        (32, 256, 113 * 1024 - 16, 2),  # and 1 KiB more each
        (32, 256, 113 * 1024 - 15, 1),
        (16, 32, 0, 32),
    ],
)
def test_occupancy(tmp_path, registers, threads, shared, blocks):
    launch = {"threads": threads, "shared": shared}
    found = resources.occupancy(entry(tmp_path, registers), launch)
    assert found == (blocks, round(100 * blocks * threads / 2048))


def test_the_table_is_read_as_it_was_written_and_shows_changes(tmp_path):
    launches = {"single": {"threads": 256, "shared": 0}}
    rows = resources.table([entry(tmp_path)], launches)
    assert resources.parse(resources.write(rows, "13.0")) == (rows, "13.0")
    assert resources.changes(rows, rows) == []
    more = resources.table([entry(tmp_path, 48)], launches)
    (change,) = resources.changes(rows, more)
    assert change.endswith("sm_90: 42, 62 % in the table, 48, 62 %")
    # A build for fewer architectures says nothing of the others.
    assert resources.changes({k: {**row, "sm_80": "1, 1 %"} for k, row in rows.items()}, rows) == []
    assert resources.changes(rows, {**rows, "new": {}}) == ["new is not in the table"]


def test_the_committed_table_has_every_architecture():
    rows, _ = resources.parse((SCRIPTS.parent / "cuda" / "resources.md").read_text())
    assert len(rows) >= 100
    for row in rows.values():
        assert list(row) == ["threads", "shared", "sm_80", "sm_90", "sm_100", "sm_120"]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """`plans` with the traits as they are."""
    return plans.build(tmp_path_factory.mktemp("plans") / "plans")


def test_the_committed_predictions_are_those_of_the_plans(program):
    text = (SCRIPTS / "benchmarks" / "predictions.md").read_text()
    assert text == predictions.document(program), "run: python scripts/tune.py predict --write"


def test_plans_are_those_of_info(program):
    chain = model.Chain(8, 16384, 128, "cdil", 3, 14, "bfloat16")
    ((plan,), _) = plans.ask(program, [chain])
    text = info.plan(16384, 128, links.cdil(16384), dtype=torch.bfloat16, device="cuda")
    assert [(launch["way"], launch["factors"]) for launch in plan["forward"]] == [
        ("bands", 5),
        ("bands", 9),
    ]
    assert "factors 0 to 4 as bands" in text and "factors 5 to 13 as bands" in text
    assert [launch["first"] for launch in plan["saving"]] == [0, 4, 8]  # cuts
    assert plan["cuts"] == [4, 8]


def test_a_launch_takes_its_slowest_resource_and_a_quarter_of_the_others():
    machine = model.Machine("x", device=2.0, l2=4.0, shared=1.0, instructions=1.0, mma=1.0)
    cost = model.Cost(device=20.0, l2=16.0, shared=4.0)
    assert cost.microseconds(machine) == 10 + (4 + 4) / 4 + model.LAUNCH_MICROSECONDS
    assert (cost + cost).launches == 2


def test_bytes_follow_from_the_plan():
    chain = model.Chain(2, 64, 32, "cdil", 3, 6, "float32")
    assert chain.floor() == 4 * 2 * 64 * (2 * 32 + 6 * 3)
    assert chain.floor(backward=True) == 4 * 2 * 64 * (5 * 32 + 3 * 6 * 3)
    product = model.product(chain, model.Counts(), alone=True)
    # 12 bytes of a row's weights, anywhere in sectors of 32: 40 on the average.
    assert product.device == 2 * 64 * (2 * 32 * 4 + 40)


def test_a_window_reads_its_rows_once_and_far_ones_once_a_link():
    chain = model.Chain(2, 4096, 128, "chord", 13, 12, "float32")
    launch = {"way": "windows", "tiles": 8, "rows": 1024, "ring": 4096, "channels": 16}
    launch |= {"near": 11, "splits": 1}
    counts = model.Counts()
    cost = model.mix_window(chain, launch, counts)
    assert cost.device == 2 * chain.values + chain.weights(1)
    assert cost.l2 == chain.values * (1 + 2 + 2) + chain.weights(1)
    dots = model.dot_window(chain, launch, counts)
    assert dots.l2 == chain.values * (1 + 2 + 2) + 2 * 2 * 4096 * 13 * 4
    forward = model.forward_costs(chain, [launch], counts)
    back = model.backward_costs(chain, [launch | {"first": 0}], [], counts)
    assert [cost.launches for cost in forward + back] == [1, 1, 3]
    products = model.product(chain, counts, alone=True), model.backward_product(chain, counts)
    for machine in model.MACHINES:
        assert model.microseconds(forward, machine) < 0.6 * products[0].microseconds(machine)
        assert model.microseconds(back, machine) < 0.8 * products[1].microseconds(machine)


TRAITS = (SCRIPTS.parent / "cuda" / "traits.h").read_text()


def test_every_variant_changes_what_it_names_and_nothing_else():
    for knobs in sweep.VARIANTS:
        changed = set(sweep.edit(TRAITS, knobs).splitlines()) - set(TRAITS.splitlines())
        names = sorted(name.partition(".")[2] for name in knobs)
        assert sorted(line.split("=")[0].split()[-1] for line in changed) == names
    # Both structs have this member.
    edited = sweep.edit(TRAITS, {"TileTraits.kThreads": "128"})
    assert edited.count("kThreads = 256;") == TRAITS.count("kThreads = 256;") - 1


@pytest.mark.parametrize(
    "words", [["TileTraits.kSegment"], ["Other.kSegment=1"], ["kSegment=1"], ["=1"]]
)
def test_words_that_are_no_knobs_are_refused(words):
    with pytest.raises(ValueError, match=r"a knob is STRUCT\.NAME=VALUE"):
        sweep.parse_knobs(words)


def test_knobs_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"no knob TileTraits\.kNone"):
        sweep.edit(TRAITS, sweep.parse_knobs(["TileTraits.kNone=1"]))


@pytest.mark.slow
@pytest.mark.parametrize("knobs", sweep.VARIANTS, ids=str)
def test_every_variant_has_plans(knobs, tmp_path):
    """Its static_asserts hold on the host."""
    variant = sweep.prepare(tmp_path, 0, knobs)
    program = plans.build(variant.folder / "plans", variant.folder)
    made, _ = plans.ask(program, sweep.CASES)
    assert len(made) == len(sweep.CASES)


# Two loops, one inside of another, and a forward branch.
LISTING = """
        Function : _ZN9paramixer4cuda17chain_tile_kernelIfEEvNS0_13TileArgumentsIT_EE
    /*0000*/                   MOV R1, c[0x0][0x28] ;
    /*0010*/                   ISETP.GE.AND P0, PT, R0, R2, PT ;
    /*0020*/              @!P0 FFMA R3, R4, R5, R3 ;
    /*0030*/                   FFMA R3, R4, R5, R3 ;
    /*0040*/               @P0 BRA 0x60 ;
    /*0050*/               @P1 BRA 0x20 ;
    /*0060*/                   IADD3 R0, R0, 0x1, RZ ;
    /*0070*/              @!P2 BRA 0x10 ;
    /*0080*/                   EXIT ;
    /*0090*/                   BRA 0x90;
"""


def test_the_innermost_loops_are_counted():
    found = sass.loops(LISTING)
    assert list(found) == ["chain_tile f32"]
    (loop,) = found["chain_tile f32"]
    assert loop == {"FFMA": 2, "BRA": 2}
    assert sass.shortest(found["chain_tile f32"], "FFMA") == 4
    assert sass.shortest([], "FFMA") is None


def test_the_model_takes_what_was_counted():
    found = {"band bf16 K=3": [Counter(HMMA=16, LDS=84), Counter(FFMA=57, LDS=3)]}
    counts = sweep.counted(found, segment=17)
    assert (counts.segment, counts.bands[3].multiply, counts.bands[3].compose) == (17, 100, 60)
    assert counts.tiles == model.Counts().tiles and counts.bands[5] == model.Counts().bands[5]


def test_a_variant_that_computes_something_else_is_named():
    right = {plans.argument(chain): {"error": 1e-7} for chain in sweep.CASES}
    assert sweep.wrong(right) == []
    case = plans.argument(sweep.CASES[0])
    assert sweep.wrong({**right, case: {"error": 1e-3}}) == [case]
