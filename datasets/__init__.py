"""Sets that a network learns from: folders of slices or volumes, with their card, cache, transforms and augmentation.

`slices` and `volumes` open a set, `transforms` says what its folders may hold, `streams` draws batches of it, and
`set_tables` reads its card.
"""
