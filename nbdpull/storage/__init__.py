"""Files of a store: create-only, durable, read by ranges; whatever they hold."""
