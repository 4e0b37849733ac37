//! What benchmarks load a registry with.

use std::sync::Arc;

use muster_catalog::{Address, Command, Instance, Name, Node, Origin, Port, Registration, Text, Weights};
use muster_registry::client::{Client, ClientConfig};

use crate::harness::TestCluster;

/// A client of the registry's own protocol.
pub fn native_client(cluster: &TestCluster) -> Arc<Client> {
    Arc::new(Client::new(ClientConfig::new(cluster.members())))
}

/// The registration of instance `number`, on one of 500 nodes, of one of 1,000 services.
pub fn registration_command(number: u64) -> Command {
    let name = Name::lookup(&format!("ext-{}", number % 500));
    let node = Node {
        name: name.clone(),
        id: Text::from(""),
        address: Address::Ip([10, 0, 0, 1].into()),
        tagged_addresses: Default::default(),
        meta: Default::default(),
        locality: None,
        origin: Origin::Catalog,
    };
    let instance = Instance {
        node: name.clone(),
        id: format!("s-{number}").into(),
        service: Name::lookup(&format!("svc-{}", number % 1000)),
        tags: vec!["v1".into()],
        address: None,
        tagged_addresses: Default::default(),
        ports: vec![Port { name: "default".into(), number: 80 }],
        meta: Default::default(),
        weights: Weights::default(),
        locality: None,
        draining: false,
        maintenance: None,
        enable_tag_override: false,
        proxy: None,
        traffic: None,
        origin: Origin::Catalog,
    };
    Command::Register(Registration { name, node: Some(node), instances: vec![instance], checks: Vec::new() })
}
