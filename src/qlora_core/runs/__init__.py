"""The run directory, the one thing that the trainer and everything else share: what is planned, written and read there.

`run` reads a run, `writer` writes one, `plan` makes one from settings and data, `schema` says what its files hold.
"""
