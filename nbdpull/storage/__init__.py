"""The files of a store: create-only, durable, read by ranges, whatever their content."""
