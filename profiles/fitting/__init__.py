"""What a job stores: queries and texts as it goes (`content`), and its result in the end (`publishing`)."""
