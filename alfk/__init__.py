"""Active learning with Fisher-kernel self-supervision (Gudovskiy et al., CVPR 2020, arXiv:2003.00393).

The folders are floors, each importing only from those before it: support, data, networks, method (the paper), rivals
(methods of other papers), experiment (one run on disk), own (for a loop of your own), plotting, cli. No data set is
named in any of them.

    pool, validation = alfk.Split.of(images), alfk.Split.of(others, labels, like=pool)
    query = alfk.query("Rzg_pz", alfk.tapped(model, ["layer3", "layer4"]), pool, validation, n=40)
"""

from alfk import rivals  # registers its methods
from alfk.data.split import Split
from alfk.networks.suggestions import suggest_taps
from alfk.networks.taps import tapped
from alfk.own.annotations import Annotations, read_annotations, write_request
from alfk.own.linear import linear
from alfk.own.progress import Progress, progress_report
from alfk.own.queries import Query, query, select
from alfk.support import distributed
from alfk.support.errors import UserError

__version__ = "0.4.0"

__all__ = [
    "Annotations",
    "Progress",
    "Query",
    "Split",
    "UserError",
    "distributed",
    "linear",
    "progress_report",
    "query",
    "read_annotations",
    "rivals",
    "select",
    "suggest_taps",
    "tapped",
    "write_request",
]
