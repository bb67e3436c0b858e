"""What a run shows: progress and final table on the terminal, `report.html` and its pictures."""
