"""Codes of grouped quantisers: each channel or row of each image by the nearest of a few frozen ones, in one pass.

What IGQ-ViT does at run time (its specification, sections 2.2, 3 and 10): extremes, assignment, quantisation.
"""

from jvq.kernels.group_encode.cases import CASES
from jvq.kernels.group_encode.encode import ALONG, DISTANCES, IMPLEMENTATIONS, group_encode
from jvq.kernels.group_encode.ladder import base_scale, code_offset

__all__ = ["ALONG", "CASES", "DISTANCES", "IMPLEMENTATIONS", "base_scale", "code_offset", "group_encode"]
