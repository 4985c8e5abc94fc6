"""Evaluation of models on local files, without verl."""
