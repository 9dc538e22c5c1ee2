"""What the four scripts of a data set call: one function a stage, file in, file out."""
