# frontd's image: a venv built in one stage and copied into a bare one.  Runs as uid 10001 on a read-only root with no capability.
#
#   docker build -t frontd .
#   docker build -t frontd --secret id=ca,src=/path/to/bundle.pem .     behind a proxy that re-signs TLS; nothing of it stays in a layer
#   docker build -t frontd-kerberos --build-arg EXTRAS=kerberos .       with an extra of pyproject.toml
#
# Any image with Python 3.11+ and its venv module serves as BASE_IMAGE; with EXTRAS it has to be one of Debian or Ubuntu.
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# Dependencies first: a change of the program does not install them again.
COPY pyproject.toml ./
RUN --mount=type=secret,id=ca,target=/run/secrets/ca \
    set -e; if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    python -m venv /opt/frontd; \
    python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > requirements.txt; \
    /opt/frontd/bin/pip install -q --only-binary :all: -r requirements.txt
# Extras have to be compiled.  The compiler stays in this stage; /packages lists what the result is linked with.  -O1 takes a third
# less time than -O2, and a binding does little by itself.
ARG EXTRAS=
RUN --mount=type=secret,id=ca,target=/run/secrets/ca \
    set -e; : >/packages; if [ -z "$EXTRAS" ]; then exit 0; fi; \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    python -c 'import os, tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
print(*(one for name in os.environ["EXTRAS"].split(",") for one in extras[name]), sep="\n")' >extras.txt; \
    include=$(python -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
    headers=; if [ ! -e "$include/Python.h" ]; then headers=python3-dev; fi; \
    apt-get update -qq; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc libc6-dev libkrb5-dev $headers >/dev/null; \
    CFLAGS="-O1 -g0" /opt/frontd/bin/pip install -q -r extras.txt; \
    find /opt/frontd -name '*.so' -exec ldd {} + | sed -nE 's|.*=> (/usr)?/lib/.*/([^/ ]+) .*|*/\2|p' | sort -u \
        | xargs dpkg-query -S | cut -d: -f1 | sort -u >/packages
COPY . ./
RUN --mount=type=secret,id=ca,target=/run/secrets/ca \
    set -e; if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    /opt/frontd/bin/pip install -q --no-deps . ; \
    /opt/frontd/bin/pip check

FROM ${BASE_IMAGE}
# The standard library's bytecode is compiled here because slim images ship without it and uid 10001 cannot write it:
# otherwise each health check would compile what it imports.
RUN python -m compileall -q -x '/(test|tests|idlelib|tkinter|turtledemo|lib2to3|site-packages|dist-packages)/' \
        "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
 && groupadd -g 10001 frontd \
 && useradd -u 10001 -g 10001 -M -d /var/lib/frontd -s /usr/sbin/nologin frontd \
 && install -d -o frontd -g frontd -m 0750 /var/lib/frontd /run/frontd \
 && install -d -m 0755 /etc/frontd
RUN --mount=type=bind,from=build,source=/packages,target=/packages \
    set -e; if [ ! -s /packages ]; then exit 0; fi; \
    apt-get update -qq; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(cat /packages) >/dev/null; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*
# Owned by frontd so that `FROM frontd` + `RUN pip install PLUGIN` needs no change of user;
# at run time the read-only root (compose.yaml, `docker run --read-only`) keeps the program from changing itself.
COPY --from=build --chown=10001:10001 /opt/frontd /opt/frontd
# The replay cache of Kerberos would be a file in /var/tmp, which a read-only root does not let us write.  It lies in the state directory and not
# in a tmpfs, so that a token which somebody has overheard is of no use after a restart either.
ENV PATH=/opt/frontd/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    KRB5RCACHEDIR=/var/lib/frontd \
    PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
USER 10001:10001
WORKDIR /
# certificates of its own and log files; the control socket
VOLUME ["/var/lib/frontd", "/run/frontd"]
EXPOSE 80 443
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 CMD ["frontd", "healthcheck"]
ENTRYPOINT ["frontd"]
CMD ["serve", "-c", "/etc/frontd/frontd.yaml"]
