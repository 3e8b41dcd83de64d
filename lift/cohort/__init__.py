"""Cohorts of patients on disk: layouts, splits, and the phantom."""
