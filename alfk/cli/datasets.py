"""The data sets that have a folder in the repository."""

import functools
import importlib

from alfk.cli.options import ROOT
from alfk.config import Experiment
from alfk.errors import UserError


@functools.cache
def all_experiments() -> dict[str, Experiment]:
    """The EXPERIMENTS of every folder's config.py, by name; the repository's root has to be on sys.path."""
    found: dict[str, Experiment] = {}
    if not (ROOT / "run_plot.py").exists():
        raise UserError("data sets are known in the repository's folder alone, not to an installed package")
    for path in sorted(ROOT.glob("*/config.py")):
        if path.parent.name != "alfk":
            here = getattr(importlib.import_module(f"{path.parent.name}.config"), "EXPERIMENTS", {})
            for name in here.keys() & found.keys():
                raise UserError(f"two folders have a data set {name}: rename it in {path}")
            found |= here
    return found


def get_experiment(name: str) -> Experiment:
    """The constants of a data set. Raises UserError."""
    if name not in all_experiments():
        raise UserError(f"no folder's config.py has the data set {name}; there are {', '.join(all_experiments())}")
    return all_experiments()[name]
