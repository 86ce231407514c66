"""Tools of the command line: `tessera inspect`, `bench`, and `verify --impl`.

The runtime never imports them, and their further requirements stay in extras.
"""
