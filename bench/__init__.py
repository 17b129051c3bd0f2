"""Measurements of the repository. Results are kept as JSON in bench/results, with the machine they come from."""
