"""Published classifiers: their rows and what is told about them."""
