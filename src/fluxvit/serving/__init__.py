"""The HTTP server and its page: ``fluxvit serve``. It needs the extra ``serve``."""
