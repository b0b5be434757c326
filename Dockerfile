# The tools in a container that runs as an ordinary user. For a CPU as it stands; for NVIDIA GPUs:
#
#   docker build -t qwen-vl .
#   docker build -t qwen-vl --build-arg TORCH_INDEX_URL= --build-arg EXTRAS=serve,web,eval,quant,deepspeed .
#   docker run --rm -it -v "$PWD:/data" qwen-vl chat /data/output/quickstart/merged
#   docker run --rm --gpus all --ipc host -v "$PWD:/data" qwen-vl train --data_path my_data.json --output_dir output ..
#
# Files that it writes belong to user 1000; `--user "$(id -u):$(id -g)"` makes them yours. compose.yaml starts the API
# and the web page.
FROM python:3.11-slim-bookworm AS build

# Empty: PyPI's torch, which is the CUDA build.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG EXTRAS=serve,web,eval

# A compiler, for the extra quant.
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*

ENV VENV=/opt/venv PIP_NO_CACHE_DIR=1
WORKDIR /opt/qwen-vl
# First what changes seldom, so that a change of the code does not install torch again.
COPY constraints.txt ./
RUN python -m venv "$VENV" && "$VENV/bin/pip" install --quiet -c constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
COPY . .
RUN sh scripts/setup_venv.sh "$EXTRAS" && "$VENV/bin/python" -m compileall -q qwen_vl


FROM python:3.11-slim-bookworm

# Labels of boxes in Chinese need a font that has the characters; triton needs a C compiler on a GPU.
RUN apt-get update && apt-get install -y --no-install-recommends fonts-wqy-microhei gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 qwen && install -d -o qwen -g qwen /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/qwen-vl /opt/qwen-vl

ENV VENV=/opt/venv PATH=/opt/venv/bin:$PATH HOME=/home/qwen HF_HOME=/data/.cache/huggingface
USER 1000
WORKDIR /data
ENTRYPOINT ["qwen-vl"]
CMD ["--help"]
