"""Training of hypernetworks."""
