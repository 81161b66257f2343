"""The parts that networks are built of, and the networks themselves but for the plain U-Nets, which are in networks.py.

`base` is what every network is: a `Network` says which sizes it takes, where its encoder ends, and how its weights
load.
"""
