"""Wall-clock of full-size models, dense and pruned, beside transformers' own and the best plain SDPA."""
