"""Draws the README's picture: the factors of both protocols on 16 positions, and their product.

python scripts/draw_factors.py docs/factors.png
"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import paramixer
import torch

LENGTH = 16


def factor(offsets: list[int], generator: torch.Generator) -> torch.Tensor:
    """(N, N), a factor with positive weights whose rows sum to one."""
    weight = torch.rand(LENGTH, len(offsets), generator=generator).softmax(-1)
    return paramixer.mix(weight, torch.eye(LENGTH), offsets)


def main() -> None:
    """Draws one row of matrices a protocol."""
    generator = torch.Generator().manual_seed(3)
    protocols = {
        "CDIL, K = 3": paramixer.links.cdil(LENGTH),
        "Chord, K = 5": paramixer.links.chord(LENGTH),
    }
    figure, axes = plt.subplots(2, 5, figsize=(10, 4.3), layout="constrained")
    for row, (name, protocol) in zip(axes, protocols.items(), strict=True):
        factors = [factor(offsets, generator) for offsets in protocol]
        product = torch.linalg.multi_dot(factors[::-1])
        titles = [f"$S_{m}$" for m in range(1, len(factors) + 1)]
        for axis, matrix, title in zip(row, [*factors, product], [*titles, "product"], strict=True):
            axis.imshow(matrix, cmap="Blues", vmin=0, vmax=matrix.max())
            axis.set(title=title, xticks=[], yticks=[])
        row[0].set_ylabel(name)
    figure.savefig(sys.argv[1], dpi=110)


if __name__ == "__main__":
    main()
