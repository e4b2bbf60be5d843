# Both frameworks, Horovod built for them, Open MPI and ssh, and no compiler. How to use it: docs/docker.md.
#
#   docker build --tag hvdtrain .
#   docker run --rm --init hvdtrain
#
# Stages: `builder` compiles, `package` installs the project, `cpu` is what runs. An image for GPUs is a stage
# like `cpu` whose builder starts from a base with CUDA; add it above `cpu`, which is the default by being last.
# Slow steps come before the sources, so that a change to the project rebuilds neither frameworks nor Horovod.

FROM debian:bookworm AS builder
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        cmake g++ libopenmpi-dev make openmpi-bin python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ARG TORCH_REQUIREMENT=torch==2.13.0
ARG TENSORFLOW_REQUIREMENT=tensorflow==2.21.0
# Where pip looks; unset means its defaults. The CPU build of torch has an index of its own.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ENV PATH=/opt/hvdtrain/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml setup.py ./
# Without its sources hvdtrain is only the list of what it needs.
RUN python3 -m venv /opt/hvdtrain \
    && pip install --quiet "$TORCH_REQUIREMENT" "$TENSORFLOW_REQUIREMENT" '.[all]' \
    && pip uninstall --quiet --yes hvdtrain

COPY hvdtrain/__init__.py hvdtrain/
COPY hvdtrain/core/__init__.py hvdtrain/core/errors.py hvdtrain/core/
COPY hvdtrain/engine hvdtrain/engine
# `hvdtrain engine build --install` before the rest of hvdtrain is there; built wheels outlive this layer.
RUN --mount=type=cache,target=/root/.cache/hvdtrain \
    python -c 'from hvdtrain.engine.commands import engine_app; engine_app()' build --install
# Headers, symbols and tools that serve only those who compile.
RUN cd /opt/hvdtrain/lib/python3*/site-packages \
    && rm -rf tensorflow/include torch/include torch/bin/protoc* torch/bin/test_* \
    && find horovod -name '*.so' -exec strip --strip-unneeded {} +

FROM builder AS package
COPY . .
RUN pip install --quiet --no-deps --no-index --no-build-isolation --root /package .

FROM debian:bookworm AS cpu
# The server's own keys are made when the package is installed: in an image they would be everybody's.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        openmpi-bin openssh-client openssh-server python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/* /etc/ssh/ssh_host_*

# A user without a password, but not locked: sshd turns locked accounts away. sshd can run as this user, on a
# port that needs no root, with keys that are mounted; clients in the same image find it there.
RUN useradd --uid 1000 --create-home --shell /bin/bash --password '*' hvdtrain \
    && printf '%s\n' 'Port 2222' 'HostKey /home/hvdtrain/.sshd/host_key' 'PidFile none' 'UsePAM no' \
        'PasswordAuthentication no' 'SetEnv PATH=/opt/hvdtrain/bin:/usr/local/bin:/usr/bin:/bin' \
        >/etc/ssh/sshd_config.d/hvdtrain.conf \
    && printf '%s\n' 'Host *' '    Port 2222' '    StrictHostKeyChecking accept-new' \
        '    UserKnownHostsFile ~/.sshd/known_hosts' >/etc/ssh/ssh_config.d/hvdtrain.conf

COPY --from=builder /opt/hvdtrain /opt/hvdtrain
COPY --from=package /package/opt/hvdtrain /opt/hvdtrain
# Containers may not read each other's memory directly, which Open MPI's shared memory would try first.
ENV PATH=/opt/hvdtrain/bin:$PATH PYTHONUNBUFFERED=1 OMPI_MCA_btl_vader_single_copy_mechanism=none

USER hvdtrain
WORKDIR /home/hvdtrain
RUN mkdir --mode=700 .sshd && mkdir outputs
COPY --chown=hvdtrain:hvdtrain hostfiles hostfiles
COPY --chown=hvdtrain:hvdtrain hvdtrain/specs specs
COPY --chown=hvdtrain:hvdtrain torch_jobs torch_jobs
COPY --chown=hvdtrain:hvdtrain tf_jobs tf_jobs
CMD ["hvdtrain", "demo"]
