"""What the tests of the official files share."""

import numpy as np
import torch
from torch.utils.data import DataLoader


def read(task, part, workers=0, batch_size=3):
    """All batches of a part."""
    loader = DataLoader(
        getattr(task, part), batch_size, collate_fn=task.collate, num_workers=workers
    )
    return list(loader)


def same_for_any_workers(task):
    """Whether 0, 1 and 2 processes read the same."""
    batches = [read(task, "train", workers) for workers in range(3)]
    return all(
        all(torch.equal(a, b) for a, b in zip(one, other, strict=True) if a is not None)
        for others in batches[1:]
        for one, other in zip(batches[0], others, strict=True)
    )


def disjoint(task):
    """Whether no sample is in two parts."""
    rows = np.concatenate([part.rows for part in task.parts])
    return len(set(rows.tolist())) == len(rows)


def check_lengths(task):
    """Every part knows the lengths of its samples, and none is longer than it may be."""
    for part in task.parts:
        for index, length in enumerate(part.lengths):
            x = part[index].x
            rows = x if isinstance(x, tuple) else (x,)
            assert length == max(map(len, rows)) <= task.length
