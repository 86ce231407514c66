"""The benchmark: what `tessera bench` measures, and how."""
