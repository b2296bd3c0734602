"""Kernels: products of low-bit integers; one folder an op.

A folder has a ``ref.py`` to compare with, exactly, and one file an implementation; its ``__init__`` exports the public
functions and ``IMPLEMENTATIONS``, over which the op's tests run. ``impl="auto"`` may fall back from an implementation
that declines, a named one never does.
"""
