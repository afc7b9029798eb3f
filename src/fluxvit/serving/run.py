"""``fluxvit serve``: run the server until it is told to stop."""

from __future__ import annotations

import signal
from types import FrameType

from fluxvit.serving.config import ServeConfig
from fluxvit.utils.system import device_name
from fluxvit.utils.terminal import printable, say

# Seconds that an answer may take beyond its deadline.
_GRACE = 5


def run_server(config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C. Requests that were accepted are answered first.

    Raises:
        ValueError: A package is missing, or the checkpoint or an option cannot be used.
    """
    try:
        import fastapi  # noqa: F401
        import multipart  # noqa: F401
        import pebble  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ValueError(f"serving needs {error.name}: pip install 'fluxvit[serve]'") from None
    from fluxvit.serving.app import create_app, server_token
    from fluxvit.serving.service import Service

    service = Service(config)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # Uvicorn's own repeats the signal at the end, so that the exit code is not 0.
            service.draining = True
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

        async def startup(self, sockets: list | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                host, port = self.servers[0].sockets[0].getsockname()[:2]
                name = f"[{host}]" if ":" in host else host
                say(f"serving {printable(service.engine.name)} on http://{name}:{port}", flush=True)

    say(f"fluxvit: running on {device_name(service.engine.video.device)}", error=True)
    Server(
        uvicorn.Config(
            create_app(service, server_token()),
            host=config.host,
            port=config.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(config.deadline + config.upload) + _GRACE,
            # Connections beyond those that may wait; more than that is an attack.
            limit_concurrency=4 * config.queue,
        )
    ).run()
