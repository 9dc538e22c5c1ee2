"""Figures and tables from results lines."""
