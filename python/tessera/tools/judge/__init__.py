"""Judges an implementation of `align_block_size` that is not Tessera's: `tessera verify --impl`.

The judge never runs it in its own process: `runner` keeps a process in which `worker` makes the
calls, in a signature that `forms` knows. `judging` runs the steps, with the time limits of `clock`:
`search` makes the calls in the order of `classes`; `programs` finds the calls that break a rule in
a fresh process, and simplifies them, a single call with `shrinking`; `trial` runs the `snippet`,
and `left_behind` collects its outcome.
"""
