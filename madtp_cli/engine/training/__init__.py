"""How a model learns: the loop, its step and losses, the teacher, and states to resume from."""
