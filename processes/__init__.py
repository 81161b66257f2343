"""What must hold whatever happens around a program: locks, signals, names that nobody else has, text that is data
wherever it is written, work shared out to processes.

`lock` and all it needs run on a bare python, before the virtual environment is there: this package imports the
standard library alone, but for `team`, which nothing in it imports.
"""
