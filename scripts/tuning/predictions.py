"""Tables of predicted times, from the plans that the CUDA key makes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from tuning import plans
from tuning.model import (
    MACHINES,
    Chain,
    Cost,
    Counts,
    Launch,
    Machine,
    backward_costs,
    forward_costs,
    microseconds,
)

# Microseconds on an H100, forward and with gradients, that are to be met.
GOALS = {
    ((32, 1024, 64), "bfloat16"): (10, 30),
    ((16, 4096, 64), "bfloat16"): (18, 55),
    ((8, 16384, 128), "bfloat16"): (60, 200),
    ((8, 16384, 128), "float32"): (140, 450),
    ((1, 131072, 256), "bfloat16"): (150, 480),
    ((1, 1048576, 64), "bfloat16"): (450, 1500),
}
# Fields of Cost, as the tables call them.
WORDS = {
    "device": "memory",
    "l2": "L2",
    "shared": "shared",
    "instructions": "issue",
    "mma": "mma",
}

HEAD = """\
# Predicted times of chains on CUDA

Computed, not measured: the plans of the CUDA key, through the model of `scripts/tuning/model.py`
(bytes and instructions over the rates that a GPU reaches; the slowest, a quarter of the others, and
2 us a launch). The floor is every input read and every output written once at the same rate of
device memory. Microseconds; a measured time belongs beside its prediction, with the reason where
they differ. Written by

    python scripts/tune.py predict --write

"""


def name(chain: Chain) -> str:
    """Such as "(8, 16384, 128) CDIL K=3"."""
    shape = (chain.batch, chain.length, chain.channels)
    return f"{shape} {chain.protocol.upper()} K={chain.links}"


def short(launches: list[Launch]) -> str:
    """How many factors each launch takes, and how: such as "1 in tiles, 5 + 9 in bands"."""
    if all(launch["way"] == "product" for launch in launches):
        return f"{len(launches)} products"
    runs = itertools.groupby(launches, key=lambda launch: launch["way"])
    return ", ".join(
        f"{listed([launch['factors'] for launch in run], ' + ')} in {way}" for way, run in runs
    )


def bound(cost: Cost, machine: Machine) -> str:
    """What takes longest."""
    slowest = max(WORDS, key=lambda field: getattr(cost, field) / getattr(machine, field))
    return WORDS[slowest]


def listed(numbers: list[float], between: str = ", ") -> str:
    """One number a launch; of many equal ones the first and how many."""
    texts = [f"{number:.0f}" for number in numbers]
    if len(texts) > 3 and len(set(texts)) == 1:
        return f"{len(texts)} x {texts[0]}"
    return between.join(texts)


def goal(chain: Chain, which: int) -> str:
    """Forward (0) or with gradients (1), where there is one."""
    case = ((chain.batch, chain.length, chain.channels), chain.dtype)
    has_goal = case in GOALS and (chain.protocol, chain.links) == ("cdil", 3)
    return str(GOALS[case][which]) if has_goal else ""


def times(chain: Chain, costs: list[Cost], backward: bool) -> list[str]:
    """The last columns: predicted and floor on every machine, and the goal."""
    predicted = [microseconds(costs, machine) for machine in MACHINES]
    floors = [chain.floor(backward) / machine.device for machine in MACHINES]
    both = [" / ".join(f"{time:.0f}" for time in row) for row in (predicted, floors)]
    return [*both, goal(chain, int(backward))]


def forward_row(chain: Chain, launches: list[Launch], counts: Counts) -> list[str]:
    """A line of the table of forward passes."""
    costs = forward_costs(chain, launches, counts)
    elements = chain.values / chain.size
    return [
        name(chain),
        chain.dtype,
        short(launches),
        listed([cost.device / 1e6 for cost in costs]),
        listed([cost.instructions / elements for cost in costs]),
        bound(sum(costs, Cost()), MACHINES[0]),
        listed([cost.microseconds(MACHINES[0]) for cost in costs]),
        *times(chain, costs, backward=False),
    ]


def training_row(chain: Chain, plan: dict[str, Any], counts: Counts) -> list[str]:
    """A line of the table of training passes."""
    forward = forward_costs(chain, plan["saving"], counts)
    back = backward_costs(chain, plan["backward"], plan["cuts"], counts)
    costs = forward + back
    return [
        name(chain),
        chain.dtype,
        short(plan["saving"]),
        short(plan["backward"]),
        f"{sum(cost.device for cost in costs) / 1e6:.0f}",
        bound(sum(costs, Cost()), MACHINES[0]),
        f"{microseconds(forward, MACHINES[0]):.0f} + {microseconds(back, MACHINES[0]):.0f}",
        *times(chain, costs, backward=True),
    ]


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


FORWARD = ["chain", "dtype", "launches", "MB", "instructions / element", "bound", "us, H100"]
TRAINING = ["chain", "dtype", "forward", "backward", "MB", "bound", "us, H100"]
LAST = ["total H100 / H200", "floor", "goal"]


def document(program: Path) -> str:
    """The whole file."""
    asked, counts = plans.chains(), Counts()
    made, _ = plans.ask(program, asked)
    forward = [forward_row(c, plan["forward"], counts) for c, plan in zip(asked, made, strict=True)]
    training = [training_row(c, plan, counts) for c, plan in zip(asked, made, strict=True)]
    return (
        f"{HEAD}## Forward\n\nOne number a launch, where there are several.\n\n"
        f"{markdown([*FORWARD, *LAST], forward)}\n"
        "## Forward and backward\n\nThe forward pass ends launches where it saves states; the "
        "backward pass computes those between again.\n\n"
        f"{markdown([*TRAINING, *LAST], training)}"
    )
