"""What an experiment found: statistics over its runs, a winner where there is one, a page, pictures and tables."""
