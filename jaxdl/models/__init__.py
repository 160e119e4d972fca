"""Flax modules; ops/ holds the operations they are built on. Imports flax and jax only."""
