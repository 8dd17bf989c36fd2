"""A run as one HTML file: what ran, where time went, what is proved, pictures of places."""
