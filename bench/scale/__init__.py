"""The service at the size of many users, and by number of API processes and workers."""
