# Not run by us. From the project's root:   docker build -f docker/cpu.Dockerfile -t paddle-vheat:cpu .
# docker run --rm -it --shm-size 2g -v "$PWD/data:/app/data" -v "$PWD/output:/app/output" paddle-vheat:cpu
FROM python:3.11-slim-bookworm
# What Paddle, OpenCV and the commands need of the system.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 libglib2.0-0 make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY requirements.txt requirements-dev.txt ./
RUN pip install --no-cache-dir --no-deps -r requirements.txt -r requirements-dev.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --editable .
# What goes on from one container to the next: mount it, or downloads are made anew.
ENV PADDLE_VHEAT_HOME=/app/data/cache
CMD ["python", "-m", "paddle_vheat.doctor"]
