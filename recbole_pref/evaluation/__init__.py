"""Evaluation: metrics, what they are computed from, rankings, objectives, evidence."""
