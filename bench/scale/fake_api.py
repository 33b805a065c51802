"""An API process on the engine without a model: `python -m bench.scale.fake_api STEP_S PLACES`.

Everything else is as in `alignez api`, with its settings from the environment.
"""

from __future__ import annotations

import sys
import threading

from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.common.streams import StreamWriter
from alignez_core.engines.fake.engine import FakeEngine
from api.app import create_app
from api.server import Server, server_config
from api.settings import ApiSettings
from bench.scale.fill import HIDDEN_SIZE, LAYERS
from telemetry.logs import configure_logs


class PacedEngine(FakeEngine):
    """As slow as a model: each place makes a token every `step_s`, and requests beyond the places wait for one."""

    def __init__(self, step_s: float, places: int) -> None:
        super().__init__(n_layers=LAYERS, hidden_size=HIDDEN_SIZE, step_s=step_s, max_waiting=4096)
        self._places = threading.BoundedSemaphore(places)

    def _run(self, request: GenerationRequest, length: int, writer: StreamWriter) -> None:
        with self._places:
            super()._run(request, length, writer)
        self.requests.clear()  # the list is for tests and would grow without bound


def main(step_s: float, places: int) -> None:
    """Serves until a signal comes."""
    settings = ApiSettings()
    configure_logs(settings.log_level, settings.log_format)
    engine = PacedEngine(step_s, places)
    app = create_app(settings, engine=engine)
    Server(server_config(app, settings), app.state.services).run()
    engine.close()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
