#!/usr/bin/env bash
# Builds the book in build/book/. Every warning is an error, including broken links between the
# pages. LINKS=external also checks the links to other sites, which needs a network.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${LINKS:-} in
  '' | external) ;;
  *)
    echo "LINKS: expected 'external' or nothing, got '$LINKS'" >&2
    exit 2
    ;;
esac
scripts/setup.sh docs
export PATH="$PWD/.venv/bin:$PATH"

# Always built from scratch: it takes seconds, and otherwise leftovers of deleted pages would stay.
rm -rf build/book
sphinx-build --quiet --fresh-env --nitpicky --fail-on-warning --builder html docs build/book
python scripts/check_offline.py build/book
if [[ ${LINKS:-} == external ]]; then
  sphinx-build --nitpicky --fail-on-warning --builder linkcheck docs build/book-links
else
  echo 'book: links to other sites were not checked; LINKS=external does that'
fi
echo "book: open build/book/index.html"
