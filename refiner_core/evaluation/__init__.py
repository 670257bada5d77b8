"""Measuring refiners over many cases: metrics, tables and the report."""
