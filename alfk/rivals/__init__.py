"""Acquisition methods of other papers, as functions of features and logits."""
