"""The HTTP process: profiles, jobs and an OpenAI-compatible endpoint that applies each user's profile."""
