"""What a training tells of itself: losses, throughput, MFU, progress, and the trackers that show them."""
