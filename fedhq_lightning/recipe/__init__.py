"""A recipe as text: where it is, its keys, what is wrong with it, and whether two are the same run. No torch here."""
