#!/usr/bin/env bash
# Makes the book in build/book/. Every warning is an error, broken links among the pages included.
# LINKS=external checks the links to other sites as well, which needs a network.
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

# Always made whole: it takes seconds, and leftovers of deleted pages would go unseen.
rm -rf build/book
sphinx-build --fresh-env --nitpicky --fail-on-warning --builder html docs build/book
python scripts/check_offline.py build/book
if [[ ${LINKS:-} == external ]]; then
  sphinx-build --nitpicky --fail-on-warning --builder linkcheck docs build/book-links
else
  echo 'book: links to other sites were not checked; LINKS=external does that'
fi
echo "book: open build/book/index.html"
