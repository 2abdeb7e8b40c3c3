#!/usr/bin/env python3
"""The CUDA kernels' knobs and predicted times; needs a GPU only to measure.

predict   prints the predicted time of every chain of the goals; --write keeps it
"""

from __future__ import annotations

import argparse
import sys

from tuning import plans, predictions

PREDICTIONS = plans.ROOT / "scripts" / "benchmarks" / "predictions.md"
BUILD = plans.ROOT / "build" / "tuning"


def predict(args: argparse.Namespace) -> int:
    """Prints or writes the predictions."""
    text = predictions.document(plans.build(BUILD / "plans"))
    if args.write:
        PREDICTIONS.write_text(text)
    else:
        print(text, end="")
    return 0


def main(argv: list[str]) -> int:
    """Reads the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("predict")
    command.add_argument("--write", action="store_true")
    command.set_defaults(run=predict)
    args = parser.parse_args(argv)
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
