"""BLIP: an image encoder, and texts that are read over its tokens."""
