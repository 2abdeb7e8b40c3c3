"""Training with Lightning. Needs the optional packages: pip install paramixer[train]."""

from paramixer._extras import needs_extra

with needs_extra("paramixer.training", "train"):
    import jsonargparse
    import lightning
    import matplotlib
    import rich
    import tensorboard
    import torchmetrics

del jsonargparse, lightning, matplotlib, rich, tensorboard, torchmetrics

from paramixer.training.batches import Batches, Plan, ResumableLoader  # noqa: E402
from paramixer.training.fit import (  # noqa: E402
    INTERRUPTED,
    BestCheckpoint,
    Curve,
    EpochLines,
    LastCheckpoint,
    Progress,
    fit,
    quiet_lightning,
)
from paramixer.training.learner import Learner, decay_groups, judge  # noqa: E402
from paramixer.training.network import MIXERS, learner_for, network_for  # noqa: E402
from paramixer.training.noise import noise  # noqa: E402
from paramixer.training.record import (  # noqa: E402
    Reference,
    RunRecord,
    evaluate,
    evaluate_best,
    read_records,
    reference_rows,
    show_record,
    start_record,
    summarize,
)
from paramixer.training.report import (  # noqa: E402
    plot_curve,
    plot_mixing,
    versions,
    wilson_interval,
    write_json,
)
from paramixer.training.task_data import TaskData, data_for  # noqa: E402

__all__ = [
    "INTERRUPTED",
    "MIXERS",
    "Batches",
    "BestCheckpoint",
    "Curve",
    "EpochLines",
    "LastCheckpoint",
    "Learner",
    "Plan",
    "Progress",
    "Reference",
    "ResumableLoader",
    "RunRecord",
    "TaskData",
    "data_for",
    "decay_groups",
    "evaluate",
    "evaluate_best",
    "fit",
    "judge",
    "learner_for",
    "network_for",
    "noise",
    "plot_curve",
    "plot_mixing",
    "quiet_lightning",
    "read_records",
    "reference_rows",
    "show_record",
    "start_record",
    "summarize",
    "versions",
    "wilson_interval",
    "write_json",
]
