"""The class ``Setting``, the tables of our settings and of RecBole's, and queries over their attributes.

Defaults and explanations are in the property files (``properties/``).
"""

from typing import Any

from recbole_pref.settings.ours import CHOSEN_WEIGHTS, LINEAR_SETTINGS, PRIORS, SETTINGS
from recbole_pref.settings.recbole import (
    RECBOLE_SETTINGS,
    check_clipping,
    check_columns,
    check_discretization,
    check_eval_args,
    check_interval,
    check_negatives,
)
from recbole_pref.settings.setting import Setting, is_finite, is_number, plain_value, shown

__all__ = [
    "CHOSEN_WEIGHTS", "LINEAR_SETTINGS", "PRIORS", "RECBOLE_SETTINGS", "SETTINGS", "Setting",
    "attribute_of_settings", "check_clipping", "check_columns", "check_discretization", "check_eval_args",
    "check_interval", "check_negatives", "check_setting", "is_finite", "is_number", "plain_value",
    "settings_set_by", "settings_with", "setting_of", "shown",
]  # fmt: skip


def setting_of(key: str) -> Setting | None:
    """Return the setting of this package or of RecBole with this key, or None."""
    return SETTINGS.get(key) or RECBOLE_SETTINGS.get(key)


def check_setting(key: str, value: Any, name: str | None = None) -> None:
    """Refuse a value that a setting does not accept; keys without a setting are not checked.

    Args:
        key: the setting.
        value: its value.
        name: name of the setting in the message; by default the key.

    Raises:
        PrefError: names the setting, the value, the accepted values and the nearest choice.
    """
    setting = setting_of(key)
    if setting is not None:
        setting.check(name or key, value)


def settings_with(**attributes: Any) -> frozenset[str]:
    """Return the keys whose settings have these attributes: ``settings_with(scope="run")``."""
    return frozenset(
        key
        for key, setting in {**RECBOLE_SETTINGS, **SETTINGS}.items()
        if all(getattr(setting, name) == value for name, value in attributes.items())
    )


def attribute_of_settings(name: str) -> dict[str, Any]:
    """Return the values of an attribute by key, for the settings in which it is not the default."""
    default = getattr(Setting, name)  # of the dataclass
    values = {key: getattr(setting, name) for key, setting in {**RECBOLE_SETTINGS, **SETTINGS}.items()}
    return {key: value for key, value in values.items() if value != default}


def settings_set_by(caller: str) -> frozenset[str]:
    """Return the keys of the settings that a ``comparison`` or a ``sweep`` sets itself."""
    return frozenset(key for key, callers in attribute_of_settings("set_by").items() if caller in callers)
