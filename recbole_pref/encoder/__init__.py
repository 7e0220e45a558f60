"""Multimodal item encoder: ``MM`` before a backbone's name, as in ``RoDPOMMSASRec``."""

from recbole.model.sequential_recommender import Caser, GRU4Rec, SASRec

from recbole_pref.encoder.multimodal import Multimodal, multimodal_class


class MMSASRec(Multimodal, SASRec):
    """SASRec on items fused from ID and item features."""


class MMGRU4Rec(Multimodal, GRU4Rec):
    """GRU4Rec on items fused from ID and item features."""


class MMCaser(Multimodal, Caser):
    """Caser on items fused from ID and item features."""


def with_features(backbone: type) -> type:
    """Return ``MM<Backbone>``, created on first use when it is not defined above.

    Args:
        backbone: a sequential model class of RecBole.
    """
    name = f"MM{backbone.__name__}"
    if name not in globals():
        globals()[name] = multimodal_class(backbone)
    return globals()[name]
