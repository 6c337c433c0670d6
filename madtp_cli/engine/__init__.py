"""What the commands do: build from a recipe, train, evaluate, profile."""
