"""What a model's routing looks like, and which block size suits it: `tessera inspect`."""

from tessera.tools.inspection.document import Document
from tessera.tools.inspection.logs import inspect_logs

__all__ = ["Document", "inspect_logs"]
