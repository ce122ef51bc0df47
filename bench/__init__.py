"""Measurements: never part of the tests, because a timing that fails is noise."""
