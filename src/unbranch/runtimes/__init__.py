"""What runs a network file, and how long a run takes."""
