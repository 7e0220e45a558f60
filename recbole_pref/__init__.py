"""RecBole-Pref: preference optimization for sequential recommendation on RecBole.

Importing the package makes its models known to RecBole: ``run_recbole(model="LPOSASRec")`` works.
"""

from recbole_pref import compat, moved
from recbole_pref.version import __version__

compat.apply()

from recbole_pref.registry import register  # noqa: E402  (RecBole can be imported from here on)

register()
moved.register()

from recbole_pref import plugins  # noqa: E402

plugins.load()

__all__ = ["__version__"]
