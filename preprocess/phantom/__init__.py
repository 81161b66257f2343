"""Made-up cohorts of MR- and CT-like volumes and of street scenes, so that the whole chain runs without a download."""

CARD = "phantom.json"  # next to the volumes of a phantom: how it was made
SIZES = ("small", "full")
