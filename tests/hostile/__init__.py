"""Hostile input: what a loader is given is changed at random, and what it then does is judged.

``mutations`` and ``structured`` change bytes, ``models`` and ``inputs`` make whole input, ``loading`` reads it and says
what must hold, ``targets`` is the table of these, ``trial`` judges. ``benchmarks/fuzz.py`` runs the same for longer.
"""
