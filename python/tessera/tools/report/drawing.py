"""A drawing in SVG, styled only by `figure.css`: the same in a page and as a separate file."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from tessera.tools.printable import printable

STYLE = Path(__file__).with_name("figure.css")
_MARGIN = 12  # around a drawing that is a separate file


class Drawing:
    """Collects SVG elements, which have classes instead of colours."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._elements: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, kind: str, title: str = ""
    ) -> None:
        """A rectangle; `title` is shown when the mouse rests on it."""
        place = f'x="{_px(x)}" y="{_px(y)}" width="{_px(width)}" height="{_px(height)}"'
        end = f"><title>{escape(printable(title))}</title></rect>" if title else "/>"
        self._elements.append(f'<rect class="{kind}" {place}{end}')

    def line(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        """A line through all points."""
        path = " ".join(f"{_px(x)},{_px(y)}" for x, y in points)
        self._elements.append(f'<polyline class="{kind}" points="{path}"/>')

    def path(self, commands: str, kind: str, transform: str = "") -> None:
        """A path in SVG's own commands."""
        moved = f' transform="{transform}"' if transform else ""
        self._elements.append(f'<path class="{kind}" d="{commands}"{moved}/>')

    def text(self, x: float, y: float, content: str, kind: str = "") -> None:
        """One line of text; `kind` has its alignment: nothing, `middle` or `end`."""
        place = f'x="{_px(x)}" y="{_px(y)}"'
        self._elements.append(f'<text class="{kind}" {place}>{escape(printable(content))}</text>')

    def marker(self, x: float, y: float, shape: int, kind: str) -> None:
        """A small marker that distinguishes lines: circle, square, triangle, diamond, cross."""
        where = f"M{_px(x)} {_px(y)}"
        self.path(
            where
            + (
                "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
                "m-3.5-3.5h7v7h-7z",
                "m0-4.6l4.4 7.9h-8.8z",
                "m0-5l5 5l-5 5l-5-5z",
                "m-1.4-4.4h2.8v3h3v2.8h-3v3h-2.8v-3h-3v-2.8h3z",
            )[shape],
            f"marker {kind}",
        )

    def svg(self, alternative: str, standalone: bool) -> str:
        """The complete element; `alternative` describes in words what it shows."""
        label = f'role="img" aria-label="{escape(printable(alternative))}"'
        body = "".join(self._elements)
        if not standalone:
            box = f"0 0 {self.width} {self.height}"
            return f'<svg class="drawing" viewBox="{box}" {label}>{body}</svg>'
        # A page's background may follow a switch that a picture cannot see, so it has its own.
        width, height = self.width + 2 * _MARGIN, self.height + 2 * _MARGIN
        size = f'width="{width}" height="{height}"'
        box = f"{-_MARGIN} {-_MARGIN} {width} {height}"
        ground = f'<rect class="ground" x="{-_MARGIN}" y="{-_MARGIN}" {size}/>'
        style = f"<style>{STYLE.read_text(encoding='utf-8')}</style>"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" viewBox="{box}" {size} '
            f"{label}>{style}{ground}{body}</svg>\n"
        )


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
