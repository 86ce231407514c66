"""Loads torch, which takes seconds, in the process that the judge's others are forked from."""

from tessera._library import torch_or_none

# A torch that fails does not end that process: the others say why there is none.
torch_or_none()
