"""A trained network on new volumes: what is behind predict.py."""
