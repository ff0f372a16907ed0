"""A tiny base model and a small set of real images, so that the project can be tried without any download."""
