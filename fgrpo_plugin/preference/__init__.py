"""Preference data: from files of any usual format to desirable and undesirable rows. Knows nothing of verl."""
