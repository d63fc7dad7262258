"""What a run leaves behind for people: curves and files."""
