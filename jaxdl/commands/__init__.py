"""One module a command, each with a `main(argv)`; jaxdl/__main__.py lists them. Nothing imports these."""
