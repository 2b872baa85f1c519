// Only to have the headers compiled.
