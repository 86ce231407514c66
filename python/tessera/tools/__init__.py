"""What only the command line runs: `tessera inspect`, `bench`, and `verify` of programs.

The runtime never imports any of it, and what it needs beyond the runtime stays in extras.
"""
