"""qwix and back: a plan as its quantisation rules, packed weights as its QArrays, and its QArrays as packed weights."""

from jvq.export.qwix.rules import Translation, rules
from jvq.export.qwix.text import python_of
from jvq.export.qwix.trees import from_qwix, to_qwix

__all__ = ["Translation", "from_qwix", "python_of", "rules", "to_qwix"]
