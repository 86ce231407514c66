"""Frames with scales, and the elements that figures draw in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tessera.tools.report.drawing import Drawing
from tessera.tools.report.words import number

NARROW, WIDE = 400, 860  # widths of a drawing: for a phone, and for a page
LEFT, RIGHT = 46, 12  # margins of a frame


@dataclass(frozen=True)
class Figure:
    """A drawing with its texts."""

    name: str  # of its file
    title: str
    caption: str  # explains how to read it
    alternative: str  # describes what it shows, for readers who cannot see it
    drawing: Drawing

    @property
    def wide(self) -> bool:
        """Whether it needs more than a phone's width."""
        return self.drawing.width > NARROW


@dataclass(frozen=True)
class Plot:
    """A frame of a drawing, with a vertical scale from 0 to `highest`."""

    drawing: Drawing
    left: float
    top: float
    right: float
    bottom: float
    highest: float

    def y(self, value: float) -> float:
        """The vertical position of a value."""
        return self.bottom - (self.bottom - self.top) * value / self.highest

    def scale(self, step: float, words: Callable[[float], str]) -> None:
        """Horizontal lines, `step` apart, with their values in words."""
        for i in range(int(self.highest / step + 1e-9) + 1):
            y = self.y(i * step)
            self.across(i * step, "grid" if i else "axis")
            self.drawing.text(self.left - 6, y + 4, words(i * step), "end")

    def across(self, value: float, kind: str) -> None:
        """A horizontal line."""
        self.drawing.line([(self.left, self.y(value)), (self.right, self.y(value))], kind)

    def below(self, words: str) -> None:
        """Write the label of the horizontal axis."""
        self.drawing.text((self.left + self.right) / 2, self.bottom + 36, words, "middle")

    def places(self, names: Sequence[int], words: str) -> dict[int, float]:
        """Evenly spaced positions on the horizontal axis, by name; draws names and axis label."""
        gap = (self.right - self.left) / len(names)
        found = {name: self.left + gap * (i + 0.5) for i, name in enumerate(names)}
        for name, x in found.items():
            self.drawing.text(x, self.bottom + 19, number(name), "middle")
        self.below(words)
        return found

    def series(self, points: Sequence[tuple[float, float]], shape: int, kind: str) -> None:
        """A line with a marker at every point."""
        self.drawing.line(points, kind)
        for x, y in points:
            self.drawing.marker(x, y, shape, kind.split()[0])

    def end_labels(self, x: float, ends: Iterable[tuple[float, str]]) -> None:
        """Names of lines beside their right ends, moved apart if they would touch."""
        ends = list(ends)
        wanted = [self.y(value) for value, _ in ends]
        placed = spread(wanted, 14, self.top - 2, self.bottom - 8)
        for (_, name), y, place in zip(ends, wanted, placed, strict=True):
            self.drawing.line([(x + 7, y), (x + 15, place)], "leader")
            self.drawing.text(x + 18, place + 4, name)


def round_step(length: float, ticks: int) -> float:
    """The smallest round distance that fits into `length` at most `ticks` times."""
    steps = (m * 10.0**e for e in range(-2, 9) for m in (1, 2, 2.5, 5))
    return next(step for step in steps if length / step <= ticks)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, in their order, at least `gap` apart, in [low, high].

    If there is no room for all, the lowest ones are below `low`.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = list(wanted)
    floor = low
    for i in order:
        places[i] = max(wanted[i], floor)
        floor = places[i] + gap
    ceiling = high
    for i in reversed(order):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    return places
