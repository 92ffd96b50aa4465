"""What lmworks survives, measured: one module a figure, one section each in benchmarks/reliability.json."""
