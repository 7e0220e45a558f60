"""Train and test a model: ``python run_recbole_pref.py --model=LPOSASRec --dataset=ml-100k``."""

import sys

from recbole_pref.cli import main

if __name__ == "__main__":
    sys.exit(main())
