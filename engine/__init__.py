"""A training from its flags to its folder: arguments, the loop over epochs, evaluation, what is written, and how that
survives.

main.py builds the parts and hands them to `loop`.
"""
