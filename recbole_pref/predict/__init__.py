"""Recommendations from a checkpoint.

recbole-pref predict saved/NAME-best.pth --input=sequences.csv --output=top.csv --k=10
"""

from recbole_pref.predict.files import PIECE_ROWS, Predicted, predict_file
from recbole_pref.predict.reading import read_sequences
from recbole_pref.predict.recommender import Recommender

__all__ = ["PIECE_ROWS", "Predicted", "Recommender", "predict_file", "read_sequences"]
