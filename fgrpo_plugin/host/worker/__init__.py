"""In a worker, per micro-batch."""
