"""CLIP: two encoders into one space."""
