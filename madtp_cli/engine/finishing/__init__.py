"""How a run ends: calibration has met the budget, the test split is read, report and card are written."""
