"""Off-policy preference data: files of any usual format -> rows on two sides. Knows nothing of verl."""
