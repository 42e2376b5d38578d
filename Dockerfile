# docker build -t sac-torchrl .                                 PyTorch for CPUs
# docker build -t sac-torchrl --build-arg DEVICE=cu130 .        PyTorch for NVIDIA GPUs, by the CUDA of its wheels
# docker run -v "$PWD/runs:/runs" sac-torchrl train continuous  runs are written to ./runs
FROM python:3.12-slim

ARG DEVICE=cpu
# For MuJoCo's pictures without a display.
RUN apt-get update && apt-get install -y --no-install-recommends libegl1 libgl1 && rm -rf /var/lib/apt/lists/*

COPY . /package
RUN pip install --no-cache-dir uv \
    && uv pip install --system --no-cache --torch-backend "${DEVICE}" "/package[dmc,video]" \
    && rm -rf /package

ENV MUJOCO_GL=egl
WORKDIR /
VOLUME /runs
ENTRYPOINT ["sac-torchrl"]
CMD ["--help"]
