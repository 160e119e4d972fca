"""Data sets: sources of examples and the rows made of them; never a device.

Imports jaxdl.api, errors and files only.
"""
