# The tools in a container; for the CPU unless told otherwise. Not part of the tests: they have no Docker.
#
#   docker build -t qwen-vl .
#   docker build -t qwen-vl --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130 .
#   docker run --rm -it -v "$PWD:/data" qwen-vl chat /data/output/quickstart/merged
#   docker run --rm --gpus all --ipc host -v "$PWD:/data" qwen-vl train --data_path my_data.json --output_dir output ..
FROM python:3.11-slim

ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu

# Labels of boxes in Chinese need a font that has the characters.
RUN apt-get update && apt-get install -y --no-install-recommends fonts-wqy-microhei && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/qwen-vl
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt --index-url "$TORCH_INDEX_URL" torch
COPY . .
RUN pip install --no-cache-dir -c constraints.txt .

WORKDIR /data
ENTRYPOINT ["qwen-vl"]
