"""Figures and tables from results lines, pictures of why images were chosen, and of what their labels brought."""

import importlib.util
import os
import sys

_backend = os.environ.get("MPLBACKEND")
if _backend and "matplotlib" not in sys.modules:
    del os.environ["MPLBACKEND"]  # with a wrong one matplotlib cannot be imported
    import matplotlib

    try:
        # A notebook sets one for its subprocesses too, which may lack the module.
        if not _backend.startswith("module://") or importlib.util.find_spec(_backend[9:].split(".")[0]):
            matplotlib.rcParams["backend"] = os.environ["MPLBACKEND"] = _backend
    except ValueError:
        print(f"warning: MPLBACKEND={_backend} is no backend of matplotlib, and is not used", file=sys.stderr)

from alfk.plotting.progress import progress  # noqa: E402
from alfk.plotting.reasons import matches  # noqa: E402

__all__ = ["matches", "progress"]
