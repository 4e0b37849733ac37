//! Random rows and commands for property tests.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use muster_catalog::{
    Address, Check, CheckKind, ClusterId, Command, Inbound, Instance, Locality, Meta, Name, Node, NodeSync, Origin,
    OutlierDetection, Port, Protocol, Proxy, Registration, Removal, ServiceAddress, Status, Text, Traffic, Upstream,
    Weights, Writer,
};
use proptest::{collection::vec, option, prelude::*};

fn word() -> impl Strategy<Value = Text> {
    "[a-z]{1,6}".prop_map(Text::from)
}

/// Few nodes, so that commands meet.
pub(crate) fn node_name() -> impl Strategy<Value = Name> {
    prop::sample::select(vec!["a", "b", "C.example"]).prop_map(Name::lookup)
}

fn service_name() -> impl Strategy<Value = Name> {
    prop::sample::select(vec!["web", "db", "Cache"]).prop_map(Name::lookup)
}

fn id() -> impl Strategy<Value = Text> {
    prop::sample::select(vec!["one", "two", "three"]).prop_map(Text::from)
}

fn address() -> impl Strategy<Value = Address> {
    prop_oneof![
        any::<u32>().prop_map(|bits| Address::Ip(Ipv4Addr::from_bits(bits).into())),
        any::<u128>().prop_map(|bits| Address::Ip(std::net::Ipv6Addr::from_bits(bits).into())),
        word().prop_map(Address::Host),
    ]
}

fn meta() -> impl Strategy<Value = Meta> {
    vec((word(), word()), 0..3).prop_map(|pairs| pairs.into_iter().collect())
}

fn locality() -> impl Strategy<Value = Option<Locality>> {
    option::of((word(), word()).prop_map(|(region, zone)| Locality { region, zone }))
}

fn origin() -> impl Strategy<Value = Origin> {
    prop::sample::select(vec![Origin::Agent, Origin::Catalog, Origin::Registry])
}

fn status() -> impl Strategy<Value = Status> {
    prop::sample::select(vec![Status::Passing, Status::Warning, Status::Critical])
}

pub(crate) fn node(name: impl Strategy<Value = Name>) -> impl Strategy<Value = Node> {
    (name, word(), address(), meta(), meta(), locality(), origin()).prop_map(
        |(name, id, address, tagged_addresses, meta, locality, origin)| Node {
            name,
            id,
            address,
            tagged_addresses,
            meta,
            locality,
            origin,
        },
    )
}

pub(crate) fn instance(node: impl Strategy<Value = Name>) -> impl Strategy<Value = Instance> {
    let tagged = vec((word(), word(), any::<u16>()), 0..2).prop_map(|rows| {
        rows.into_iter().map(|(label, address, port)| (label, ServiceAddress { address, port })).collect()
    });
    let port = (word(), any::<u16>()).prop_map(|(name, number)| Port { name, number });
    let rest = (any::<(u16, u16, bool, bool)>(), option::of(word()), locality(), origin());
    let rest = (rest, option::of(proxy()), option::of(traffic()));
    ((node, id(), service_name()), (vec(word(), 0..3), option::of(address()), tagged), vec(port, 0..3), meta(), rest)
        .prop_map(|((node, id, service), (tags, address, tagged_addresses), ports, meta, rest)| {
            let (rest, proxy, traffic) = rest;
            let ((passing, warning, draining, enable_tag_override), maintenance, locality, origin) = rest;
            Instance {
                node,
                id,
                service,
                tags,
                address,
                tagged_addresses,
                ports,
                meta,
                weights: Weights { passing, warning },
                locality,
                draining,
                maintenance,
                enable_tag_override,
                proxy: proxy.map(Arc::new),
                traffic: traffic.map(Arc::new),
                origin,
            }
        })
}

fn socket() -> impl Strategy<Value = SocketAddr> {
    any::<(u32, u16)>().prop_map(|(bits, port)| SocketAddr::from((Ipv4Addr::from_bits(bits), port)))
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(vec![Protocol::Tcp, Protocol::Http])
}

fn duration() -> impl Strategy<Value = Duration> {
    any::<u32>().prop_map(|milliseconds| Duration::from_millis(milliseconds.into()))
}

fn proxy() -> impl Strategy<Value = Proxy> {
    let inbound =
        (socket(), socket(), protocol()).prop_map(|(listen, local, protocol)| Inbound { listen, local, protocol });
    let upstream = (service_name(), option::of(socket()), protocol(), option::of(duration())).prop_map(
        |(service, listen, protocol, connect_timeout)| Upstream { service, listen, protocol, connect_timeout },
    );
    (service_name(), option::of(id()), option::of(inbound), option::of(socket()), vec(upstream, 0..3)).prop_map(
        |(service, instance, inbound, http_listener, upstreams)| Proxy {
            service,
            instance,
            inbound,
            http_listener,
            upstreams,
        },
    )
}

fn traffic() -> impl Strategy<Value = Traffic> {
    let outlier = (any::<u32>(), duration(), duration(), any::<u8>()).prop_map(
        |(consecutive_failures, interval, ejection_time, max_ejected_percent)| OutlierDetection {
            consecutive_failures,
            interval,
            ejection_time,
            max_ejected_percent,
        },
    );
    (option::of(duration()), option::of(any::<u8>()), option::of(any::<bool>()), option::of(outlier)).prop_map(
        |(connect_timeout, panic_threshold, prefer_near, outlier_detection)| Traffic {
            connect_timeout,
            panic_threshold,
            prefer_near,
            outlier_detection,
        },
    )
}

pub(crate) fn check(node: impl Strategy<Value = Name>) -> impl Strategy<Value = Check> {
    let kind = (word(), word(), any::<u32>(), any::<u32>()).prop_map(|(kind, target, interval, timeout)| CheckKind {
        kind,
        target,
        interval: Duration::from_millis(interval.into()),
        timeout: Duration::from_millis(timeout.into()),
    });
    ((node, id(), option::of(id())), (word(), word(), word()), status(), kind, origin()).prop_map(
        |((node, id, instance), (name, notes, output), status, kind, origin)| Check {
            node,
            id,
            instance,
            name,
            status,
            notes,
            output,
            kind,
            origin,
        },
    )
}

fn sync() -> impl Strategy<Value = Command> {
    node_name().prop_flat_map(|name| {
        let rows = (vec(instance(Just(name.clone())), 0..3), vec(check(Just(name.clone())), 0..3));
        let removed = (vec(id(), 0..2), vec(id(), 0..2));
        ((1..4_u64, 1..20_u64), node(Just(name)), any::<bool>(), rows, removed).prop_map(
            |((incarnation, sequence), node, complete, (instances, checks), (removed_instances, removed_checks))| {
                let writer = Writer { incarnation, sequence };
                Command::Sync(NodeSync { writer, node, complete, instances, checks, removed_instances, removed_checks })
            },
        )
    })
}

fn register() -> impl Strategy<Value = Command> {
    node_name().prop_flat_map(|name| {
        let rows = (vec(instance(Just(name.clone())), 0..3), vec(check(Just(name.clone())), 0..2));
        (option::of(node(Just(name.clone()))), rows).prop_map(move |(node, (instances, checks))| {
            Command::Register(Registration { name: name.clone(), node, instances, checks })
        })
    })
}

fn deregister() -> impl Strategy<Value = Command> {
    prop_oneof![
        node_name().prop_map(Removal::Node),
        (node_name(), id()).prop_map(|(node, id)| Removal::Instance { node, id }),
        (node_name(), id()).prop_map(|(node, id)| Removal::Check { node, id }),
    ]
    .prop_map(Command::Deregister)
}

/// Any command, those that do much more often.
pub(crate) fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        1 => (word(), any::<u64>()).prop_map(|(uuid, incarnation)| Command::Bootstrap(ClusterId { uuid, incarnation })),
        1 => (1..4_u32).prop_map(Command::SetFormat),
        8 => sync(),
        1 => (node_name(), 1..4_u64).prop_map(|(node, incarnation)| Command::Leave {
            node,
            writer: Writer { incarnation, sequence: 99 },
        }),
        3 => (vec((node_name(), 1..4_u64), 0..3), status())
            .prop_map(|(nodes, status)| Command::Liveness { nodes, status }),
        4 => register(),
        2 => deregister(),
    ]
}
