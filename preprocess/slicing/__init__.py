"""Slices cut from volumes: what was asked for, one patient's case, the split, the tables that a set has."""
