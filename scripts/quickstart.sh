#!/usr/bin/env bash
# From a clone to a trained Paramixer: sets everything up, then runs scripts/quickstart.py with the options given here.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
set_up_environment train
say "Training a Paramixer on sequential MNIST"
cd "$ROOT"
"$PYTHON" scripts/quickstart.py "$@"
