"""Data sets and generators, a module each."""
