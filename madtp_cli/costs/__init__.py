"""What a forward pass costs: exact multiply-adds from token counts, second opinions, and measured time."""
