"""The service with the data of many users, and by number of API processes and workers."""
