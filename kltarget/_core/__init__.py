"""Numbers, checks of arguments, status bits, words and files: no noun of the field."""
