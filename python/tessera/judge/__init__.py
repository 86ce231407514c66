"""Judges an implementation of `align_block_size` that is not Tessera's: `tessera verify --impl`.

The judge never runs it in its own process: `runner` keeps a process in which `worker` makes the
calls, in the form that `forms` knows. `search` picks the calls, and `shrinking` makes them small.
"""
