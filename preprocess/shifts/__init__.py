"""Shifts that are made on purpose: the same patients as another scanner would show them, mildly (1) to badly (5).

`acquisitions` holds what a scanner can do to an image; `python -m preprocess.shift_volumes` does it to volumes.
"""
