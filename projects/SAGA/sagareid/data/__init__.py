"""Data sets, loaders, transforms, occluders. Importing `sagareid.data.datasets` registers the data sets."""
