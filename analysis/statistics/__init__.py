"""Statistics of a comparison over patients and seeds: functions of arrays, which open no file and draw no picture.

A table is an array (P, S): one score a patient and a seed, higher being better (hand in distances with a minus sign).
"""
