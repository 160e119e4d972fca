"""The path of a step: the config, the program compiled for a mesh, the feed, evaluation, optimizers.

Imports jaxdl.api, metrics, errors and files only, and what models say of layouts; names no concrete
model, task or data set.
"""
