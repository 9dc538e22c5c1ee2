"""Density matching with random misclassified validation images as centres, in place of those of greedy k-centre.

An ablation of the paper's method, not in the paper: everything but the centres is as in `alfk.method.matching`.
"""

import functools

from alfk.method.acquisition import match_errors
from alfk.method.registry import Method

_match = functools.partial(match_errors, random_centres=True)

METHODS = (
    Method("Rz_rc", "$R_z$, random centres", _match, frozenset({"features"})),
    Method("Rzg_rc", "$R_{z,g}$, random centres", _match, frozenset({"features", "scores"}), False, "pz", "true"),
)
