"""Evaluation: metrics, the tables behind them, ranking, objectives and evidence."""
