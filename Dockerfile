# The gateway alone: no Paddle, no Triton. It reads bundles and speaks gRPC to a Triton beside it (compose.yaml),
# or computes in-process with SLIPWAY_ENGINE=onnx.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY requirements/serving.txt requirements/serving.txt
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements/serving.txt
COPY bundle bundle
COPY serving serving

RUN useradd --no-create-home --uid 10001 gateway
USER gateway

# Inside a container the network is the container's own; what is published is decided outside.
ENV SLIPWAY_HOST=0.0.0.0 SLIPWAY_PORT=8000 SLIPWAY_BUNDLES=/bundles SLIPWAY_ENGINE=onnx
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
CMD ["python", "-m", "serving", "run"]
