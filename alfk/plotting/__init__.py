"""Figures: results lines in, pictures and tables out."""
