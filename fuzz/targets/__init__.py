"""One module a target; :mod:`fuzz.target` says what is in it."""
