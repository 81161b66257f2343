"""The page of a study: one HTML file that opens offline, with its tables, charts, images and their viewer.

A section is a function of a Study in a file of its own, its words are a template next to it. All that is shown of
names and files passes through one door: `study.page.template` escapes whatever a template prints.
"""
