"""What comes out of a trained run: predictions, and programs and weights for other software.

Imports core, run, record and data's arrays.
"""
