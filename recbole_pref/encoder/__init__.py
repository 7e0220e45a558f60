"""Multimodal item encoder: ``MM`` before a backbone's name, as in ``RoDPOMMSASRec``."""

from recbole.model.sequential_recommender import Caser, GRU4Rec, SASRec

from recbole_pref.encoder.multimodal import Multimodal, multimodal_class


class MMSASRec(Multimodal, SASRec):
    """SASRec on items fused from ID and item features."""


class MMGRU4Rec(Multimodal, GRU4Rec):
    """GRU4Rec on items fused from ID and item features."""


class MMCaser(Multimodal, Caser):
    """Caser on items fused from ID and item features."""


def with_features(backbone):
    """Return ``MM<Backbone>``, made on first use where it is not written out.

    Args:
        backbone (type): a sequential model class of RecBole.
    """
    name = f"MM{backbone.__name__}"
    if name not in globals():
        globals()[name] = multimodal_class(backbone)
    return globals()[name]
