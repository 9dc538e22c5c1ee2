"""Figures and tables from results lines, pictures of why images were chosen, and of what their labels brought."""

from alfk.plotting.progress import progress
from alfk.plotting.reasons import matches

__all__ = ["matches", "progress"]
