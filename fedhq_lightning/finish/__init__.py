"""The end of a run: the model folder, the summary and the report."""
