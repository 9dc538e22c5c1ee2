"""The stages that a data set's scripts run, one function each; they read and write the files of a run."""
