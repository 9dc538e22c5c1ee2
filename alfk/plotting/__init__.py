"""Figures and tables from results lines, and pictures of why images were chosen."""

from alfk.plotting.reasons import matches

__all__ = ["matches"]
