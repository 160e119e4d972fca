"""One module per command, each with a `main(argv)`; jaxdl/__main__.py lists them.

No other package imports these modules.
"""
