"""Tables of releases, of other programs and of single cells, with errors that name the line."""
