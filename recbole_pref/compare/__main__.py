"""``python -m recbole_pref.compare``: the worker server of a comparison, or one run of it again."""

import sys

from recbole_pref.compare.runs import main

if __name__ == "__main__":
    sys.exit(main())
