"""Generation: which profile applies, the run of a request, and its wire formats."""
