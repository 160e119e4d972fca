"""Environments of reinforcement learning as functions with a state; imports jax, api and errors."""
