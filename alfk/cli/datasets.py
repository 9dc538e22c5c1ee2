"""The data sets of the repository: each has a folder with a config.py."""

import functools
import importlib
from pathlib import Path
from types import ModuleType

from alfk.cli.options import ROOT
from alfk.experiment.config import Experiment
from alfk.support.errors import UserError


@functools.cache
def _configs() -> dict[Path, ModuleType]:
    """File -> module of every folder's config.py; the repository's root has to be on sys.path."""
    if not (ROOT / "run_plot.py").exists():
        raise UserError("data sets are known only in the repository's folder, not to an installed package")
    files = (path for path in sorted(ROOT.glob("*/config.py")) if path.parent.name != "alfk")
    return {path: importlib.import_module(f"{path.parent.name}.config") for path in files}


@functools.cache
def all_experiments() -> dict[str, Experiment]:
    """The EXPERIMENTS of every config.py, by name. Raises UserError if two have the same name."""
    found: dict[str, Experiment] = {}
    for path, config in _configs().items():
        here = getattr(config, "EXPERIMENTS", {})
        for name in here.keys() & found.keys():
            raise UserError(f"two folders have a data set {name}: rename it in {path}")
        found |= here
    return found


def get_experiment(name: str, datadir: Path) -> Experiment:
    """The constants of a data set, or of a folder of own images that was used before, which a config.py may `find`.

    Args:
        datadir: the folder of the data sets, local_data.
    Raises:
        UserError: there is no such data set.
    """
    if name in all_experiments():
        return all_experiments()[name]
    for config in _configs().values():
        find = getattr(config, "find", None)
        found = find and find(datadir / name)
        if found:
            return found
    raise UserError(f"no folder's config.py has the data set {name}; there are {', '.join(all_experiments())}")
