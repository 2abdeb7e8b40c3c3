"""What `scripts/benchmark.py` is made of: cases, peers, the runner, and reports."""
