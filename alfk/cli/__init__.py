"""The commands behind the scripts of the data sets' folders: flags in, exit status out."""
