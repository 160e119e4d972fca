"""Compiled programs read: HLO text, kernels and their cost, the cards they run on.

Imports nothing of jaxdl but errors.
"""
