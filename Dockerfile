# The server, on a CPU:
#   docker build -t fluxvit .
#   docker run --rm -p 8000:8000 fluxvit
#   docker run --rm -p 8000:8000 -v "$PWD/runs/demo/best:/checkpoint:ro" fluxvit /checkpoint
FROM python:3.12-slim

# PyTorch without CUDA is a fraction of the size.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir torch --index-url "$TORCH_INDEX"

COPY pyproject.toml README.md LICENSE /fluxvit/
COPY src /fluxvit/src
RUN pip install --no-cache-dir "/fluxvit[serve,openvino]"

RUN useradd --create-home fluxvit
USER fluxvit
WORKDIR /home/fluxvit

EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]

# Without a shell between, so that SIGTERM reaches the server, which answers what it has accepted.
ENTRYPOINT ["fluxvit", "serve", "--host", "0.0.0.0"]
CMD ["fluxvit_nano_motionworld"]
