"""Flax modules; ops/ holds the operations they are built on. Imports flax, jax, api and errors only."""
