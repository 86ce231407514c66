"""Arrays of a framework that Tessera does not know."""

from __future__ import annotations

from typing import Any


class SpeaksDlpack:
    """Another framework's array, which can do nothing but be exported."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()
