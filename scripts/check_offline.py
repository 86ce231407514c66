"""Lists what a folder of HTML pages would load from a network; exits with 1 if there is anything.

Usage: check_offline.py FOLDER
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

ADDRESS = re.compile(r"(https?:)?//")
STYLE_ADDRESS = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")]+)")
# Attributes that a browser follows by itself; on a link element only if it loads its target.
LOADING_RELATIONS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "manifest"}


class Loads(HTMLParser):
    """Collects the addresses on a network that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for every element."""
        values = {name: value or "" for name, value in attrs}
        loaded = [values.get(name, "") for name in ("src", "srcset", "data", "poster")]
        if tag == "link" and LOADING_RELATIONS & set(values.get("rel", "").split()):
            loaded.append(values.get("href", ""))
        self.addresses += [address for address in loaded if ADDRESS.match(address)]
        self.addresses += STYLE_ADDRESS.findall(values.get("style", ""))


def loads_of(file: Path) -> list[str]:
    """Addresses on a network that a page or a style sheet loads."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".css":
        return STYLE_ADDRESS.findall(text)
    page = Loads()
    page.feed(text)
    return page.addresses


def main(folder: str) -> int:
    """Prints one line per address."""
    files = [file for kind in ("*.html", "*.css") for file in sorted(Path(folder).rglob(kind))]
    if not files:
        print(f"{folder}: expected HTML pages, found none")
        return 1
    lines = [f"{file}: loads {address}" for file in files for address in loads_of(file)]
    print(*lines, sep="\n", end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
