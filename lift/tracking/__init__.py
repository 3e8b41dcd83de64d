"""A run's curves for the tools that people watch experiments with.

==============  ==========================================================================
module          what is there
==============  ==========================================================================
`figures`       what is told of a round, and under which tags
`trackers`      hands every round to all trackers that the settings name, and never waits
`backends`      TensorBoard, MLflow, Weights & Biases behind one small interface
==============  ==========================================================================
"""
