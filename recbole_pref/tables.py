"""Results as readable text."""

from tabulate import tabulate

_GROUPS = (("Overall", ""), ("Head", "head"), ("Tail", "tail"))


def result_table(result, model, dataset):
    """Return the test result as a table: a row per group, a column per metric and cut-off.

    Args:
        result (dict): of ``run_recbole_pref``.
        model, dataset (str): for the title.
    """
    test = dict(result["test_result"] or {})
    if not test:
        return f"{model} on {dataset}: there are no test data."
    plain = [key for key in test if not key.startswith(("head", "tail"))]
    grouped = [key for key in plain if f"head{key}" in test or f"tail{key}" in test]
    rows = []
    for title, prefix in _GROUPS:
        values = [test.get(prefix + key) for key in grouped]
        if any(value is not None for value in values):
            rows.append([title, *("" if v is None else f"{v:.4f}" for v in values)])
    text = f"{model} on {dataset}, test set"
    if rows:
        text += "\n" + tabulate(rows, ["group", *grouped], tablefmt="github", disable_numparse=True)
    rest = [key for key in test if key.removeprefix("head").removeprefix("tail") not in grouped]
    if rest:
        pairs = [[key, f"{test[key]:.4f}"] for key in rest]
        text += "\n" + tabulate(pairs, ["metric", "value"], tablefmt="github", disable_numparse=True)
    if result["seconds_per_epoch"]:
        text += f"\n{result['epochs']} epochs, {result['seconds_per_epoch']:.2f} s per epoch"
    return text
