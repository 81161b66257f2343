"""A made-up cohort of MR- and CT-like volumes, so that the whole chain runs without a download."""
