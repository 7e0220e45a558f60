"""RecBole-Pref: preference optimization for sequential recommendation on RecBole.

Importing the package makes its models known to RecBole: ``run_recbole(model="LPOSASRec")`` works. The import itself
is cheap: torch, RecBole and the rest are imported when they are used.
"""

from recbole_pref import moved, startup
from recbole_pref.version import __version__

startup.choose_wait_policy()
startup.hook()
moved.register()
startup.load_plugins()

__all__ = ["__version__"]
