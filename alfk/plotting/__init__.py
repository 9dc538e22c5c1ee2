"""Figures and tables from results lines, pictures of why images were chosen, and of what their labels brought."""

import importlib.util
import os

_backend = os.environ.get("MPLBACKEND", "")
if _backend.startswith("module://") and not importlib.util.find_spec(_backend[len("module://") :].split(".")[0]):
    del os.environ["MPLBACKEND"]  # a notebook sets it for its subprocesses too, which may lack the module

from alfk.plotting.progress import progress  # noqa: E402
from alfk.plotting.reasons import matches  # noqa: E402

__all__ = ["matches", "progress"]
