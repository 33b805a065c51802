"""Speed of the engines: throughput by number of profiles, one step, number formats, a fit, other serving systems."""
