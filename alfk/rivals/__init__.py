"""Acquisition methods of other papers, to compare with (docs/rivals.md). Importing this registers them.

Each file holds a paper's formulas and declares its methods in METHODS.
"""

from alfk.method import acquisition  # registers the paper's methods, which come first
from alfk.method.registry import register
from alfk.rivals import badge, coreset, direct, epig, flqmi, galaxy, glister, random_centres, scores, typiclust

FILES = (scores, badge, coreset, galaxy, direct, typiclust, epig, glister, flqmi, random_centres)
RIVALS = tuple(register(method) for file in FILES for method in file.METHODS)

__all__ = ["RIVALS", "acquisition"]
