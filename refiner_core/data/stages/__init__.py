"""The four stages of a data build: pair, select, mask, degrade.

Each stage is a callable `Sample -> Sample` (`interface.Stage`) with a procedural and one or more
real back ends, one class each.
"""
