"""What a run leaves in its folder: config, metrics, checkpoints with digests, TensorBoard, terminal.

Imports core's config, but nothing that trains.
"""
