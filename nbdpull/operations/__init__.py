"""What a user asks for, one module a verb: the order of its steps, and its clean-up."""
