"""Datasets: one file per dataset, each with its samples, its batches and its metric."""
