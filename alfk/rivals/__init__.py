"""Acquisition methods of other papers, to compare with; importing this registers them (docs/rivals.md)."""

from alfk.method import acquisition  # the paper's methods come first in the registry
from alfk.method.registry import register
from alfk.rivals.methods import RIVALS

for _method in RIVALS:
    register(_method)

__all__ = ["RIVALS", "acquisition"]
