"""Texts: files and TFDS, tokenizers, and the rows that are packed from them."""
