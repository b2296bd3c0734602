"""Hostile input: what a loader is given is changed at random, and what it then does is judged.

``mutations`` and ``structured`` change bytes, ``targets`` are the loaders with whole input of each, ``trial`` judges.
``benchmarks/fuzz.py`` runs the same targets for longer.
"""
