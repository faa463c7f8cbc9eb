"""Image files of every kind that we can think of, and what Pillow makes of them."""
