"""Models: parameters named as in HF transformers, run over packed tokens by one loop."""
