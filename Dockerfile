# HTTP service; docs/serve.md describes how to build and run the image, also for GPUs.
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

# shared libraries that OpenCV's wheel needs
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 libxcb1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /polyolo
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements.txt requirements-serve.txt ./
RUN python -m pip install --no-cache-dir --index-url ${TORCH_INDEX} "torch>=2.6" "torchvision>=0.21" \
    && python -m pip install --no-cache-dir -r requirements.txt -r requirements-serve.txt

COPY . .
RUN python -m compileall -q models utils && useradd --create-home --uid 1000 polyolo
USER polyolo
ENV PYTHONUNBUFFERED=1 MPLCONFIGDIR=/tmp
EXPOSE 5000
HEALTHCHECK --start-period=60s --interval=30s --timeout=5s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:5000/health', timeout=4)"]
# exec form, so that SIGTERM reaches the service and it finishes running requests
ENTRYPOINT ["python", "serve.py", "--host", "0.0.0.0"]
