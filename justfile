# `just verify` never writes to the tree; `just fix` is its mutating twin. CI runs `.ci/run`, which calls these.

set shell := ["bash", "-euo", "pipefail", "-c"]

# What there is.
default:
    @just --list --unsorted

# Everything that a change has to pass. Reads only.
verify: lint test

# All of verify but the tests.
lint: fmt-check clippy doc deny shell

# Formats, and takes what clippy can repair.
fix:
    cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
    cargo fmt --all

fmt-check:
    cargo fmt --all --check

clippy:
    cargo clippy --workspace --all-targets --locked -- -D warnings

# All tests. One that needs a real peer which is not installed passes itself over, and says so.
test *arguments:
    cargo test --workspace --locked {{ arguments }}

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked

# Licences, bans and sources of what we depend on; advisories where their database can be fetched.
deny:
    #!/usr/bin/env bash
    set -euo pipefail
    export PATH="${MUSTER_PEERS:-$HOME/.cache/muster-peers}/bin:$PATH"
    cargo-deny --all-features check --hide-inclusion-graph bans licenses sources
    if timeout 30 git ls-remote --exit-code https://github.com/RustSec/advisory-db HEAD >/dev/null 2>&1; then
        cargo-deny --all-features check advisories
    else
        echo "NOTICE: advisories were NOT checked: github.com/RustSec/advisory-db cannot be reached from here" >&2
    fi

shell:
    shellcheck .ci/run .ci/peers .ci/previous

# Installs the real peers (dig, dnsperf, Envoy, gRPC, a v1 client, Redis, MariaDB, PostgreSQL) and runs the tests that carry a peer's name.
peers:
    #!/usr/bin/env bash
    set -euo pipefail
    .ci/peers
    export PATH="${MUSTER_PEERS:-$HOME/.cache/muster-peers}/venv/bin:$PATH"
    CI=true cargo test --workspace --locked -- dig envoy grpc consul curl real_

# Benchmarks, with medians: `just bench` for all, `just bench --help` for which.
bench *arguments:
    cargo build --release --locked -p muster-agent -p muster-tests --bins
    cargo run --release --locked -p muster-tests --bin bench -- {{ arguments }}

# Muster beside its peers (nsd, knot, etcd from Debian) in one run: `just bench-peers`, or parts: dns storage failover propagation crowd.
bench-peers *arguments:
    cargo build --release --locked -p muster-agent -p muster-tests --bins
    cargo run --release --locked -p muster-tests --bin bench -- peers {{ arguments }}

# Fuzzes one target (see fuzz/README.md) for so many seconds.
fuzz target seconds="600":
    #!/usr/bin/env bash
    set -euo pipefail
    mkdir -p "target/fuzz-corpus/{{ target }}" target/fuzz-artifacts
    cp Cargo.lock fuzz/Cargo.lock
    cd fuzz
    cargo fuzz run --sanitizer none --target-dir ../target/fuzz "{{ target }}" "../target/fuzz-corpus/{{ target }}" "seeds/{{ target }}" -- \
        -max_total_time="{{ seconds }}" -timeout=20 -rss_limit_mb=2048 -artifact_prefix=../target/fuzz-artifacts/
