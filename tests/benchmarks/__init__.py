"""Benchmarks and studies of this project; run from a checkout: `python -m tests.benchmarks NAME`."""
