"""Pages that show what a run did: one self-contained HTML file each, opened offline."""
