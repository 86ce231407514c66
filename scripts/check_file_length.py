"""Lists the files that are longer than 400 lines; exits with 1 if there are any.

Usage: check_file_length.py FILE...
"""

import sys
from pathlib import Path

LIMIT = 400


def main(files: list[str]) -> int:
    """Prints one line per file that is too long."""
    lengths = {file: len(Path(file).read_bytes().splitlines()) for file in files}
    too_long = {file: length for file, length in lengths.items() if length > LIMIT}
    for file, length in too_long.items():
        print(f"{file}: {length} lines, more than {LIMIT}")
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
