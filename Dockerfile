# Build: docker build -t REGISTRY/k8s-copycat:VERSION .
# BASE may be any image with a Python of 3.11 or newer as python3; pin it by digest for releases.
ARG BASE=docker.io/library/python:3.13-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
RUN python3 -m venv /opt/copycat
COPY pyproject.toml README.md LICENSE ./
COPY copycat copycat
# pip goes again: the program never installs anything.
RUN /opt/copycat/bin/pip install --no-cache-dir . \
    && /opt/copycat/bin/pip uninstall --yes pip setuptools

FROM ${BASE}
LABEL org.opencontainers.image.title="k8s-copycat" \
      org.opencontainers.image.description="Keeps a copy of every image that a Kubernetes cluster runs, in a registry you control" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/copycat /opt/copycat
# The root file system is read-only in the chart: nothing is compiled or cached at run time.
ENV PATH=/opt/copycat/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /
USER 65532:65532
EXPOSE 8080 8081
ENTRYPOINT ["copycat", "run"]
