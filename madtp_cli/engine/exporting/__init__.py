"""From a checkpoint to files that run without madtp: made, compared, judged, uploaded."""
