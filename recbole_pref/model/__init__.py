"""Model classes ``<Method><Backbone>``.

Those on SASRec, GRU4Rec and Caser are written out, so that editors and pickle find them; any other
sequential model of RecBole works by the same name: ``from recbole_pref.model import LPONARM``.
"""

from recbole.model.sequential_recommender import Caser, GRU4Rec, SASRec

from recbole_pref.model.preference import PreferenceMixin, as_module_class
from recbole_pref.registry import split_model_name


class CESASRec(PreferenceMixin, SASRec):
    """SASRec trained with cross-entropy on the fast path."""

    preference_method = "CE"
    backbone_class = SASRec


class CEGRU4Rec(PreferenceMixin, GRU4Rec):
    """GRU4Rec trained with cross-entropy on the fast path."""

    preference_method = "CE"
    backbone_class = GRU4Rec


class CECaser(PreferenceMixin, Caser):
    """Caser trained with cross-entropy on the fast path."""

    preference_method = "CE"
    backbone_class = Caser


class LPOSASRec(PreferenceMixin, SASRec):
    """SASRec trained with LPO4Rec."""

    preference_method = "LPO"
    backbone_class = SASRec


class LPOGRU4Rec(PreferenceMixin, GRU4Rec):
    """GRU4Rec trained with LPO4Rec."""

    preference_method = "LPO"
    backbone_class = GRU4Rec


class LPOCaser(PreferenceMixin, Caser):
    """Caser trained with LPO4Rec."""

    preference_method = "LPO"
    backbone_class = Caser


class DPOSASRec(PreferenceMixin, SASRec):
    """SASRec trained with DPO."""

    preference_method = "DPO"
    backbone_class = SASRec


class DPOGRU4Rec(PreferenceMixin, GRU4Rec):
    """GRU4Rec trained with DPO."""

    preference_method = "DPO"
    backbone_class = GRU4Rec


class DPOCaser(PreferenceMixin, Caser):
    """Caser trained with DPO."""

    preference_method = "DPO"
    backbone_class = Caser


class SDPOSASRec(PreferenceMixin, SASRec):
    """SASRec trained with S-DPO."""

    preference_method = "SDPO"
    backbone_class = SASRec


class SDPOGRU4Rec(PreferenceMixin, GRU4Rec):
    """GRU4Rec trained with S-DPO."""

    preference_method = "SDPO"
    backbone_class = GRU4Rec


class SDPOCaser(PreferenceMixin, Caser):
    """Caser trained with S-DPO."""

    preference_method = "SDPO"
    backbone_class = Caser


class DMPOSASRec(PreferenceMixin, SASRec):
    """SASRec trained with DMPO."""

    preference_method = "DMPO"
    backbone_class = SASRec


class DMPOGRU4Rec(PreferenceMixin, GRU4Rec):
    """GRU4Rec trained with DMPO."""

    preference_method = "DMPO"
    backbone_class = GRU4Rec


class DMPOCaser(PreferenceMixin, Caser):
    """Caser trained with DMPO."""

    preference_method = "DMPO"
    backbone_class = Caser


class SimPOSASRec(PreferenceMixin, SASRec):
    """SASRec trained with SimPO."""

    preference_method = "SimPO"
    backbone_class = SASRec


class SimPOGRU4Rec(PreferenceMixin, GRU4Rec):
    """GRU4Rec trained with SimPO."""

    preference_method = "SimPO"
    backbone_class = GRU4Rec


class SimPOCaser(PreferenceMixin, Caser):
    """Caser trained with SimPO."""

    preference_method = "SimPO"
    backbone_class = Caser


class ORPOSASRec(PreferenceMixin, SASRec):
    """SASRec trained with ORPO."""

    preference_method = "ORPO"
    backbone_class = SASRec


class ORPOGRU4Rec(PreferenceMixin, GRU4Rec):
    """GRU4Rec trained with ORPO."""

    preference_method = "ORPO"
    backbone_class = GRU4Rec


class ORPOCaser(PreferenceMixin, Caser):
    """Caser trained with ORPO."""

    preference_method = "ORPO"
    backbone_class = Caser


class DynamicPOSASRec(PreferenceMixin, SASRec):
    """SASRec trained with DynamicPO."""

    preference_method = "DynamicPO"
    backbone_class = SASRec


class DynamicPOGRU4Rec(PreferenceMixin, GRU4Rec):
    """GRU4Rec trained with DynamicPO."""

    preference_method = "DynamicPO"
    backbone_class = GRU4Rec


class DynamicPOCaser(PreferenceMixin, Caser):
    """Caser trained with DynamicPO."""

    preference_method = "DynamicPO"
    backbone_class = Caser


class RoDPOSASRec(PreferenceMixin, SASRec):
    """SASRec trained with RoDPO."""

    preference_method = "RoDPO"
    backbone_class = SASRec


class RoDPOGRU4Rec(PreferenceMixin, GRU4Rec):
    """GRU4Rec trained with RoDPO."""

    preference_method = "RoDPO"
    backbone_class = GRU4Rec


class RoDPOCaser(PreferenceMixin, Caser):
    """Caser trained with RoDPO."""

    preference_method = "RoDPO"
    backbone_class = Caser


class TAWinSASRec(PreferenceMixin, SASRec):
    """SASRec trained with TAWin."""

    preference_method = "TAWin"
    backbone_class = SASRec


class TAWinGRU4Rec(PreferenceMixin, GRU4Rec):
    """GRU4Rec trained with TAWin."""

    preference_method = "TAWin"
    backbone_class = GRU4Rec


class TAWinCaser(PreferenceMixin, Caser):
    """Caser trained with TAWin."""

    preference_method = "TAWin"
    backbone_class = Caser


class MPPOSASRec(PreferenceMixin, SASRec):
    """SASRec trained with MPPO."""

    preference_method = "MPPO"
    backbone_class = SASRec


class MPPOGRU4Rec(PreferenceMixin, GRU4Rec):
    """GRU4Rec trained with MPPO."""

    preference_method = "MPPO"
    backbone_class = GRU4Rec


class MPPOCaser(PreferenceMixin, Caser):
    """Caser trained with MPPO."""

    preference_method = "MPPO"
    backbone_class = Caser


def preference_class(method, backbone):
    """Return the class of a method on a backbone, made on first use where it is not written out.

    Args:
        method (Method): of ``registry.METHODS``.
        backbone (type): a sequential model class of RecBole.
    """
    name = method.name + backbone.__name__
    if name not in globals():
        globals()[name] = as_module_class(name, method, backbone)
    return globals()[name]


def __getattr__(name):
    pair = split_model_name(name)
    if pair is None or name != pair[0].name + pair[1].__name__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return preference_class(*pair)
