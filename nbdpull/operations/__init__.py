"""What a user can ask for, one module per verb: the order of its steps, and its clean-up."""
