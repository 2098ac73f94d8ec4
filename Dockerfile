# syntax=docker/dockerfile:1

# The release binary on a slim Debian with CA certificates, run by a user that is not root.
# Templates, pages and migrations are compiled in.
#
# The plans file is NOT in the image, not even the example: with somebody else's prices and limits
# the gate would close in the wrong places, and say nothing. `serve` refuses to start without one.
# It is also the file that changes without a release, so give it at start-up:
#
#     docker build -t tollgate .
#     docker run -p 8080:8080 -v tollgate_data:/data \
#         -v ./plans.toml:/etc/tollgate/plans.toml:ro --env-file .env tollgate
#
# On Fly, [[files]] in fly.toml does it. A volume that is not made by Docker (a host folder, a
# cluster's claim) must be writable for user 65532.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build

# The dependencies first, against an empty crate: this layer is built again only when they change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked --bin tollgate

# Then the crate. What gets here is listed in .dockerignore. The touch is for cargo, which goes by
# the time of a file: a checkout older than the layer above would look already built.
COPY . .
RUN touch src/main.rs src/lib.rs \
    && cargo build --release --locked --bin tollgate \
    && mkdir /data

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /build/target/release/tollgate /usr/local/bin/tollgate
# A new volume takes its owner from the folder that it covers.
COPY --from=build --chown=65532:65532 /data /data
VOLUME /data

# A user by number, so that a cluster that forbids root can tell.
USER 65532:65532

ENV TOLLGATE_LISTEN=0.0.0.0:8080 \
    DATABASE_URL=sqlite:///data/tollgate.db \
    TOLLGATE_OUTAGE_JOURNAL=/data/tollgate.outage \
    TOLLGATE_PLANS=/etc/tollgate/plans.toml \
    TOLLGATE_LOG_FORMAT=json
EXPOSE 8080

ENTRYPOINT ["/usr/local/bin/tollgate"]
CMD ["serve"]
