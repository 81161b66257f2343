"""Files as they lie on the disk: listings of folders, pictures, volumes in every format, what their headers say, which
image and which label belong together.

Each reader believes no header: what a file states is held against what it holds. What is wrong with a file is a
`UserError` that names it (`foreign`, `faults`).
"""
