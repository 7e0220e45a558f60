"""From a CSV of interactions to recommendations: convert, train, recommend.

    python examples/own_data.py log.csv

The file has the columns user, item and time. Recommendations for a sequence of three items are printed.
"""

import sys

from recbole_pref.data.convert import convert
from recbole_pref.predict import Recommender
from recbole_pref.quick_start import run_recbole_pref


def main(csv, **settings):
    """Train on a CSV and return recommendations for an example sequence: pandas.DataFrame."""
    columns = {"user": "user", "item": "item", "time": "time"}
    summary = convert(csv, "table", "mine", output="dataset", force=True, **columns)
    print(f"{summary['users']} users, {summary['items']} items, {summary['interactions']} interactions")

    result = run_recbole_pref("LPOSASRec", "mine", config_dict={"data_path": "dataset", "epochs": 20, **settings})
    print(f"test NDCG@10: {result['test_result']['ndcg@10']:.4f}")

    recommender = Recommender(result["checkpoint"])
    sequence = recommender.tokens[1:4]  # any items of the catalogue, the latest last
    return recommender.recommend([sequence], k=5)


if __name__ == "__main__":
    print(main(sys.argv[1]))
