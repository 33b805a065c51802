"""Fits: asking for one (`request`), claims, content as it is made, and publishing the result."""
