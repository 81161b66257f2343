"""From scans to sets: the programs that unpack archives, cut slices, make priors and tags, and report what lies in a
set.

`slice_volumes`, `volume_set`, `shift_volumes`, `size_priors`, `tags`, `unpack`, `data_report` and `new_dataset` are
commands, and so is each file of `archives`; what they share is in `slicing`, `survey`, `priors` and `shifts`. `phantom`
makes up what is not there.
"""
