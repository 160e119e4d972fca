# jaxdl in a container. For CPUs:         docker build -t jaxdl .
# For NVIDIA GPUs (docker run --gpus=all): docker build -t jaxdl:gpu --build-arg EXTRA=[gpu] .
# Written without Docker at hand: it was not built yet.
FROM python:3.11-slim
ARG EXTRA=""
WORKDIR /opt/jaxdl
COPY . .
RUN python -m pip install --no-cache-dir ".${EXTRA}"
# Runs, data sets and compiled programs outlive the container if /data is mounted.
ENV JAXDL_CACHE=/data/cache
WORKDIR /data
ENTRYPOINT ["jaxdl"]
CMD ["doctor"]
