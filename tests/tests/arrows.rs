//! Holds the arrows of ARCHITECTURE.md §1: one thing at the top, one at the bottom, siblings that do not know each
//! other. Read from `cargo metadata`, so that a new dependency is judged on the day it is added.

#![allow(clippy::unwrap_used, reason = "a helper of tests may fail as they do")]

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

const CATALOG: &str = "muster-catalog";
const AGENT: &str = "muster-agent";
const TESTS: &str = "muster-tests";
/// They meet in the agent alone.
const ROOMS: [&str; 4] = ["muster-registry", "muster-dns", "muster-xds", "muster-http"];
/// What the pure room is built from: values, never I/O, a clock, chance, a runtime or a wire format.
const CATALOG_MAY_USE: [&str; 4] = ["equivalent", "event-listener", "imbl", "thiserror"];
/// Who may know a wire or a store: a room that imports another's has taken over its work.
const OWNERS: [(&str, &[&str], &str); 13] = [
    ("openraft", &["muster-registry"], "consensus is the registry's"),
    ("raft-log", &["muster-registry"], "the log on disk is the registry's"),
    ("tonic", &["muster-registry", "muster-xds", AGENT], "gRPC is the registry's and xDS'"),
    ("envoy-types", &["muster-xds"], "Envoy's words stay in xds/"),
    ("hickory-server", &["muster-dns"], "the DNS wire is dns/'"),
    ("hickory-proto", &["muster-dns"], "the DNS wire is dns/'"),
    ("hickory-resolver", &[AGENT], "names are resolved by the agent, which hands its way to the others"),
    ("axum", &["muster-http"], "HTTP is served by http/"),
    ("h2", &[AGENT], "only a check speaks bare HTTP/2"),
    ("arc-swap", &[AGENT], "one cell is read by every question: the replica's View; elsewhere a lock does"),
    ("zbus", &[AGENT], "systemd is the agent's"),
    ("clap", &[AGENT], "the command line is the agent's"),
    ("anyhow", &[AGENT], "errors are typed wherever somebody branches on them"),
];

/// The direct dependencies of each package of the workspace: shipped ones, and with those of its tests and build.
struct Imports {
    shipped: BTreeMap<String, BTreeSet<String>>,
    all: BTreeMap<String, BTreeSet<String>>,
}

fn imports() -> Imports {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path", manifest])
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut imports = Imports { shipped: BTreeMap::new(), all: BTreeMap::new() };
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap().to_owned();
        let dependencies = package["dependencies"].as_array().unwrap();
        let named = |kinds: &[Option<&str>]| {
            let wanted = dependencies.iter().filter(|dependency| kinds.contains(&dependency["kind"].as_str()));
            wanted.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
        };
        imports.shipped.insert(name.clone(), named(&[None]));
        imports.all.insert(name, named(&[None, Some("dev"), Some("build")]));
    }
    imports
}

/// Every arrow that the house does not have, with the reason.
fn wrong_arrows(imports: &Imports) -> Vec<String> {
    let mut wrong = Vec::new();
    let own: BTreeSet<&String> = imports.all.keys().collect();
    for (package, imported) in &imports.all {
        for other in imported.intersection(&own.iter().map(|name| (*name).clone()).collect()) {
            let reason = match (package.as_str(), other.as_str()) {
                (CATALOG, _) => Some("the catalog stands at the bottom and knows no other room"),
                (_, TESTS) => Some("tests are imported by nobody"),
                (TESTS, _) => None,
                (_, AGENT) => Some("the agent stands at the top: only tests may import it"),
                (AGENT, _) | (_, CATALOG) => None,
                _ => Some("rooms are siblings: they share the catalog's nouns and meet in the agent"),
            };
            wrong.extend(reason.map(|reason| format!("{package} imports {other}: {reason}")));
        }
    }
    let pure = imports.shipped[CATALOG].iter().filter(|name| !CATALOG_MAY_USE.contains(&name.as_str()));
    wrong.extend(pure.map(|name| {
        format!(
            "{CATALOG} imports {name}: it is pure, and uses {CATALOG_MAY_USE:?} alone; convert at the edge of a room"
        )
    }));
    for (library, owners, reason) in OWNERS {
        let users = imports.shipped.iter().filter(|(package, uses)| *package != TESTS && uses.contains(library));
        let strangers = users.filter(|(package, _)| !owners.contains(&package.as_str()));
        wrong.extend(strangers.map(|(package, _)| format!("{package} imports {library}: {reason}")));
    }
    wrong
}

#[test]
fn the_arrows_of_the_house_hold() {
    let imports = imports();
    let wrong = wrong_arrows(&imports);
    assert!(wrong.is_empty(), "arrows that ARCHITECTURE.md §1 does not have:\n  {}", wrong.join("\n  "));
    let rooms = imports.shipped.keys().map(String::as_str);
    let known: BTreeSet<&str> = ROOMS.into_iter().chain([CATALOG, AGENT, TESTS]).collect();
    assert_eq!(rooms.collect::<BTreeSet<_>>(), known, "a new room needs a reason in ARCHITECTURE.md, and a place here");
    for room in ROOMS.into_iter().chain([CATALOG]) {
        assert!(imports.shipped[AGENT].contains(room), "the agent wires every room, but not {room}");
    }
}

#[test]
fn a_wrong_arrow_is_named_with_its_reason() {
    let package = |name: &str, uses: &[&str]| (name.to_owned(), uses.iter().map(|name| (*name).to_owned()).collect());
    let all: BTreeMap<_, _> = [
        package(CATALOG, &["tokio", "muster-dns"]),
        package("muster-dns", &[CATALOG, "muster-xds", "axum"]),
        package("muster-xds", &[AGENT]),
        package(AGENT, &[CATALOG, "muster-dns", "clap"]),
        package(TESTS, &[AGENT, CATALOG, "tonic"]),
    ]
    .into();
    let wrong = wrong_arrows(&Imports { shipped: all.clone(), all });
    let expected =
        ["muster-catalog imports muster-dns", "muster-dns imports muster-xds", "muster-xds imports muster-agent"];
    let expected = expected.into_iter().chain(["muster-catalog imports muster-dns", "muster-catalog imports tokio"]);
    let starts: Vec<&str> = expected.chain(["muster-dns imports axum"]).collect();
    assert_eq!(wrong.len(), starts.len(), "{wrong:#?}");
    for (found, start) in wrong.iter().zip(starts) {
        assert!(found.starts_with(start), "{found:?} does not start with {start:?}");
    }
}
