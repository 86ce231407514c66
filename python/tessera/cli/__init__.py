"""The program `tessera`: one module for each command."""
