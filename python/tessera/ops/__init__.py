"""The ops as Python calls them, one module each."""
