"""What a finished or running training tells about itself: curves and a summary, drawn from its history."""
