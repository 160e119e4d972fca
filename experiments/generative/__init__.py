"""Generative models of jaxdl beside the same networks in PyTorch."""
