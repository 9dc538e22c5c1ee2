"""Active learning with Fisher-kernel self-supervision (Gudovskiy et al., CVPR 2020, arXiv:2003.00393).

The method, written once. Nothing in here knows a data set. For a loop of your own:

    pool, validation = alfk.Split.of(images), alfk.Split.of(others, labels, like=pool)
    query = alfk.query("Rzg_pz", alfk.tapped(model, ["layer3", "layer4"]), pool, validation, n=40)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alfk.annotation import Annotations, read_annotations, write_request
    from alfk.data import Split
    from alfk.errors import UserError
    from alfk.queries import Query, query, select
    from alfk.tap_suggestions import suggest_taps
    from alfk.taps import tapped

__version__ = "0.2.0"

# Imported when first used: a script that needs one module does not pay for all.
_MODULES = {
    "Annotations": "annotation",
    "Query": "queries",
    "Split": "data",
    "UserError": "errors",
    "query": "queries",
    "read_annotations": "annotation",
    "select": "queries",
    "suggest_taps": "tap_suggestions",
    "tapped": "taps",
    "write_request": "annotation",
}
__all__ = [
    "Annotations",
    "Query",
    "Split",
    "UserError",
    "query",
    "read_annotations",
    "select",
    "suggest_taps",
    "tapped",
    "write_request",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"alfk.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'alfk' has no attribute {name!r}")
