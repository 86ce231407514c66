"""The benchmark behind `tessera bench`."""
