"""Saves a Paramixer for the C++ consumer: as TorchScript and, when asked, for AOTInductor."""

import argparse
import warnings
from pathlib import Path

import torch
from paramixer.nn import Paramixer


class Recorded(torch.nn.Module):
    """Tensors for the consumer to compare with."""

    def __init__(self, **tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--aot-inductor", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*torch.jit")

    torch.manual_seed(0)
    model = Paramixer(width=8, length=20).eval()
    x = torch.randn(2, 20, 8, requires_grad=True)
    output = model(x)
    (gradient,) = torch.autograd.grad(output.sum(), x)
    recorded = Recorded(input=x.detach(), output=output.detach(), gradient=gradient)
    torch.jit.script(recorded).save(arguments.folder / "recorded.pt")
    torch.jit.script(model).save(arguments.folder / "model.pt")
    if arguments.aot_inductor:
        batch = torch.export.Dim("batch", max=64)
        program = torch.export.export(model, (x.detach(),), dynamic_shapes=({0: batch},))
        package = str(arguments.folder / "model.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=package)


if __name__ == "__main__":
    main()
