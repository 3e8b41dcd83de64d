"""The record of a run: one typed model for each of `run.json`, `rounds.jsonl` and `metrics.json`.

Programs write these files from the models, and report, page, terminal and trackers read them back.
Keys that are not known here are passed over, so that a newer run can still be read.
"""
