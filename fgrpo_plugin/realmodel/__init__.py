"""`make realmodel`: a real language model from a prompt to exported, evaluated weights, on CPU cores."""
