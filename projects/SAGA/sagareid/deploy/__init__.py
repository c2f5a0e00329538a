"""A trained model where it is used: loading, features of images, folders and galleries, export."""
