"""Judges an implementation of `align_block_size` that is not Tessera's: `tessera verify --impl`.

The judge never runs it in its own process: `runner` keeps a process in which `worker` makes the
calls, in the form that `forms` knows. `judging` goes through the steps, by the shares of `clock`:
`search` makes the calls in the order of `classes`; `programs` finds which calls it takes in a
process of their own, and makes them simple, with `shrinking` if it is one; `trial` runs the text,
and `left_behind` tells what came of it.
"""
