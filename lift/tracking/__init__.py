"""Experiment tracking: the curves of a run for TensorBoard, MLflow and Weights & Biases.

:class:`lift.tracking.run.Tracking` is the one entrance. What is logged, and under which tags, is
said in :mod:`lift.tracking.figures`; who gets it in :mod:`lift.config.tracking`.
"""
