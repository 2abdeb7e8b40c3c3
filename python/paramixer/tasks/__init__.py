"""Data sets and generators. They need the optional packages: pip install paramixer[train]."""
