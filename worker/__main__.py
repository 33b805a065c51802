"""`python -m worker`: a worker with settings from the environment."""

from worker.app import run_worker

if __name__ == "__main__":
    raise SystemExit(run_worker())
