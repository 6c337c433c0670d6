"""The four tasks: how a batch goes through a model, what is lost on it, and how answers are scored."""
