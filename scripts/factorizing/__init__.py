"""What scripts/factorize.py is made of: matrices, opponents, pictures."""
