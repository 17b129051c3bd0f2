"""The targets, one a file, by the names of the files: `TARGET` is what each gives."""
