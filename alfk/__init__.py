"""Active learning with Fisher-kernel self-supervision (Gudovskiy et al., CVPR 2020, arXiv:2003.00393).

The method, written once. Nothing in here knows a data set.
"""
