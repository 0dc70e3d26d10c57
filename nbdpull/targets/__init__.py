"""Where a restored disk goes, and how it gets there."""
