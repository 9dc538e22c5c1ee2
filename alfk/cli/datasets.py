"""The data sets that have a folder in the repository."""

import functools
import importlib
import sys
from pathlib import Path

from alfk.cli.options import ROOT
from alfk.experiment.config import Experiment
from alfk.support.errors import UserError


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


def find_experiment(name: str, datadir: Path) -> Experiment | None:
    """The constants of a data set, or of a folder of own images that has been used; None if there is none.

    Args:
        datadir: the folder with the data sets, local_data.
    """
    if name in all_experiments():
        return all_experiments()[name]
    for path in sorted(ROOT.glob("*/config.py")):
        find = getattr(sys.modules.get(f"{path.parent.name}.config"), "find", None)
        found = find and find(datadir / name)
        if found:
            return found
    return None


def get_experiment(name: str, datadir: Path) -> Experiment:
    """The same. Raises UserError if there is none."""
    found = find_experiment(name, datadir)
    if found is None:
        raise UserError(f"no folder's config.py has the data set {name}; there are {', '.join(all_experiments())}")
    return found
