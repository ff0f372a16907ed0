"""Scanned handwritten digits: 1,797 real images, their labels (for measuring only) and seeded splits."""
