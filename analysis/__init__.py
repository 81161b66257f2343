"""What is made of finished runs: `run` reads a run's folder back, `tables` compares runs, `plots` draws them.

`statistics` and `calibration` are functions of arrays, for studies of many runs.
"""
