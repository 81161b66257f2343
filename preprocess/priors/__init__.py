"""Sizes of organs: measured in labels, estimated, given."""
