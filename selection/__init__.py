"""Choosing without labels: which network of a run, or of several, to keep.

`views` disturb an image, `measuring` passes it through a candidate and keeps a few sums, `validators` make scores of
them, `decision` weighs the scores and says why. Nothing here reads a label: `choosing` opens images alone.
"""
