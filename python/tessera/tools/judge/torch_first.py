"""Loads torch, which takes seconds, in the process that the judge's workers are forked from."""

from tessera._library import torch_or_none

# If torch fails to load, that process goes on: the workers report the reason.
torch_or_none()
