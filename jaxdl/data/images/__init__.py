"""Image sets: their original files, TFDS, the builders that store them."""
