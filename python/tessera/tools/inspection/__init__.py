"""Inspects the routing in logs and advises block sizes: `tessera inspect`."""

from tessera.tools.inspection.document import Document
from tessera.tools.inspection.logs import inspect_logs

__all__ = ["Document", "inspect_logs"]
