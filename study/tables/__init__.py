"""The tables of a study: means over patients and seeds, comparisons of rows, ranks, failures, cost, every score.

Each is a `Report` (analysis.tables.table): the same in text, Markdown and LaTeX, with every digit in its csv.
"""
