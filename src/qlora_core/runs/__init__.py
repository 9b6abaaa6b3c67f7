"""The run directory, which the trainer and everything else share: runs are planned, written and read here.

`run` reads a run, `writer` writes one, `plan` makes one from settings and data, `schema` defines the contents of its
files.
"""
