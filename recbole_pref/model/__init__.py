"""Model classes ``<Method><Backbone>``: ``from recbole_pref.model import LPOSASRec``.

A class is created on first use and exists for every sequential model of RecBole. ``__init__.pyi`` lists the classes
on the main backbones.
"""


def __getattr__(name: str) -> type:
    from recbole_pref.model.names import preference_class, split_model_name

    pair = None if name.startswith("__") else split_model_name(name)
    if pair is None or name != pair[0].name + pair[1].__name__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return preference_class(*pair)
