"""Training with Lightning. Needs the optional packages: pip install paramixer[train]."""

from paramixer._extras import needs_extra

with needs_extra("paramixer.training", "train"):
    import lightning
    import matplotlib
    import rich
    import torchmetrics

del lightning, matplotlib, rich, torchmetrics

from paramixer.training.classification import Classification  # noqa: E402
from paramixer.training.data import SplitData  # noqa: E402
from paramixer.training.fit import Curve, fit  # noqa: E402
from paramixer.training.report import (  # noqa: E402
    plot_curve,
    plot_mixing,
    versions,
    wilson_interval,
    write_json,
)

__all__ = [
    "Classification",
    "Curve",
    "SplitData",
    "fit",
    "plot_curve",
    "plot_mixing",
    "versions",
    "wilson_interval",
    "write_json",
]
