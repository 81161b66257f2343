"""A comparison over several source seeds: what was asked for, what is there of it, and the tables and page made of it.

It lies in results/<set>/study: a folder a seed, in it a run folder a row, all adapted from that seed's source network.
Nothing here trains. Files are read through `study.reading`, which says what is missing.
"""
