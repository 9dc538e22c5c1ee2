"""Commands: flags in, exit status out; what the thin scripts of the data sets' folders call."""
