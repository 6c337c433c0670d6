"""How good and how expensive a model is on a data split, and what it does to single samples."""
