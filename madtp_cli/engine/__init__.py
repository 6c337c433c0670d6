"""From a recipe or a checkpoint to results: a file for each command's driver, and the wings that they are made of."""
