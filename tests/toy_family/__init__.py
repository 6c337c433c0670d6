"""A family of models and a site that madtp does not know: what it takes to add them."""
