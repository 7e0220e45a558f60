"""``python -m recbole_pref.compare``: start the worker server of a comparison, or repeat one run."""

import sys

from recbole_pref.compare.runs import main

if __name__ == "__main__":
    sys.exit(main())
