"""`python -m tessera`: the same program as `tessera`."""

import sys

from tessera.cli.main import main

sys.exit(main())
