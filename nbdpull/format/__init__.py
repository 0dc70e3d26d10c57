"""Conversion between values and the bytes of a store. docs/format.md is the specification."""
