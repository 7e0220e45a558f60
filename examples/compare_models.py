"""Compare models over seeds and publish the table: Markdown, LaTeX, CSV, pictures and an HTML report.

python examples/compare_models.py
"""

from recbole_pref.compare import compare
from recbole_pref.report import draw_and_report

MODELS = "CESASRec,CESASRec repeat_bias=True,LPOSASRec recommended/LPO.yaml"


def main(models=MODELS, dataset="ml-100k", seeds=3, **settings):
    """Train, test and publish; return the folder with table.md, table.tex and report.html."""
    done = compare(
        models,
        dataset,
        seeds=seeds,
        config_dict={"epochs": 60, "eval_step": 1, "stopping_step": 5, **settings},
        columns=["NDCG@10", "Tail NDCG@10", "seconds_per_epoch"],
    )
    print(done.text)
    print(f"report: {draw_and_report(done.folder)}")
    return done.folder


if __name__ == "__main__":
    main()
