"""What a model costs part by part, in multiply-adds and in time."""
