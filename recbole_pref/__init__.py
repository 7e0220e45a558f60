"""RecBole-Pref: preference optimization for sequential recommendation on RecBole.

Importing the package makes its models known to RecBole: ``run_recbole(model="LPOSASRec")`` works.
"""

__version__ = "0.1.0"

from recbole_pref import compat

compat.apply()

from recbole_pref.registry import register  # noqa: E402  (RecBole can be imported from here on)

register()
