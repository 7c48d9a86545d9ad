# Not run by us. From the project's root, for a driver that takes CUDA 12.6 (or cu118, for older ones):
#   docker build -f docker/gpu.Dockerfile --build-arg CUDA=cu126 -t paddle-vheat:gpu .
#   docker run --rm -it --gpus all --shm-size 8g -v "$PWD/data:/app/data" -v "$PWD/output:/app/output" paddle-vheat:gpu
# CUDA's libraries come with Paddle's wheel; of the host only the driver and NVIDIA's container toolkit are needed.
FROM python:3.11-slim-bookworm
ARG CUDA=cu126
ARG PADDLE=3.2.2
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 libglib2.0-0 make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY requirements.txt requirements-dev.txt ./
# With its requirements, which are CUDA's libraries; then ours, without the CPU build, which would be laid over it.
RUN pip install --no-cache-dir "paddlepaddle-gpu==${PADDLE}" -i "https://www.paddlepaddle.org.cn/packages/stable/${CUDA}/"
RUN grep -v '^paddlepaddle==' requirements.txt > /tmp/requirements.txt \
    && pip install --no-cache-dir --no-deps -r /tmp/requirements.txt -r requirements-dev.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --editable .
ENV PADDLE_VHEAT_HOME=/app/data/cache
CMD ["python", "-m", "paddle_vheat.doctor"]
