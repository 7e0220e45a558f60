"""Model classes ``<Method><Backbone>``: ``from recbole_pref.model import LPOSASRec``.

Each is made on first use, on any sequential model of RecBole; ``__init__.pyi`` lists those on the main backbones.
"""


def __getattr__(name):
    from recbole_pref.model.names import preference_class, split_model_name

    pair = None if name.startswith("__") else split_model_name(name)
    if pair is None or name != pair[0].name + pair[1].__name__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return preference_class(*pair)
