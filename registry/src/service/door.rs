//! What a Command has to be before it is proposed. The log is believed, so the door is strict.

use muster_catalog::{Check, Command, Instance, Name, NameError, Proxy, Removal, Traffic};

use crate::limits::MAX_COMMAND_BYTES;

/// The longest id of an instance or a check.
const MAX_ID: usize = 512;

/// Why a Command is refused at the door.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DoorError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("{field} is {length} bytes long: give it an id of 1 to {MAX_ID} bytes")]
    Id { field: &'static str, length: usize },
    #[error("the command has {0} bytes, over {MAX_COMMAND_BYTES}: shorten outputs and metadata, or register in parts")]
    Size(usize),
    #[error("instance {id}: {message}")]
    Mesh { id: String, message: String },
    #[error("only the registry itself proposes {0}")]
    Internal(&'static str),
}

/// Checks a Command that came from outside.
pub(crate) fn check(command: &Command, encoded: usize) -> Result<(), DoorError> {
    if encoded > MAX_COMMAND_BYTES {
        return Err(DoorError::Size(encoded));
    }
    match command {
        Command::Bootstrap(_) => Err(DoorError::Internal("a bootstrap")),
        Command::SetFormat(_) => Err(DoorError::Internal("a catalog format")),
        Command::Liveness { .. } => Err(DoorError::Internal("verdicts on nodes' leases")),
        Command::Sync(sync) => {
            node("node.name", &sync.node.name)?;
            rows(&sync.instances, &sync.checks)
        }
        Command::Leave { node: name, .. } => node("node.name", name),
        Command::Register(registration) => {
            node("Node", &registration.name)?;
            if let Some(row) = &registration.node {
                node("Node", &row.name)?;
            }
            rows(&registration.instances, &registration.checks)
        }
        Command::Deregister(removal) => {
            let (Removal::Node(name) | Removal::Instance { node: name, .. } | Removal::Check { node: name, .. }) =
                removal;
            node("Node", name)
        }
    }
}

fn rows(instances: &[Instance], checks: &[Check]) -> Result<(), DoorError> {
    for instance in instances {
        node("instance.node", &instance.node)?;
        Name::label("service.name", instance.service.as_str())?;
        id("instance.id", &instance.id)?;
        mesh(instance)?;
    }
    for check in checks {
        node("check.node", &check.node)?;
        id("check.id", &check.id)?;
    }
    Ok(())
}

/// Every way in asks the same; this is for who came past them.
fn mesh(instance: &Instance) -> Result<(), DoorError> {
    let proxy = instance.proxy.as_deref().and_then(Proxy::find_fault).map(|fault| fault.message);
    let traffic = || instance.traffic.as_deref().and_then(Traffic::find_fault).map(|fault| fault.message);
    for name in instance.proxy.iter().flat_map(|proxy| proxy.upstreams.iter().map(|upstream| &upstream.service)) {
        Name::label("upstream.service", name.as_str())?;
    }
    match proxy.or_else(traffic) {
        None => Ok(()),
        Some(message) => Err(DoorError::Mesh { id: instance.id.to_string(), message }),
    }
}

fn node(field: &'static str, name: &Name) -> Result<(), DoorError> {
    Name::host(field, name.as_str())?;
    Ok(())
}

fn id(field: &'static str, id: &str) -> Result<(), DoorError> {
    let length = id.len();
    if (1..=MAX_ID).contains(&length) { Ok(()) } else { Err(DoorError::Id { field, length }) }
}

#[cfg(test)]
mod tests {
    use muster_catalog::{Protocol, Upstream, Writer};

    use super::*;
    use crate::service::tests::push;

    #[test]
    fn what_only_the_registry_may_say_and_bad_names_are_refused() {
        let leave = |name| Command::Leave { node: Name::lookup(name), writer: Writer::default() };
        assert_eq!(check(&leave("web-1.example"), 10), Ok(()));
        assert!(matches!(check(&leave("no spaces"), 10), Err(DoorError::Name(_))));
        assert_eq!(check(&leave("a"), MAX_COMMAND_BYTES + 1), Err(DoorError::Size(MAX_COMMAND_BYTES + 1)));
        let upstream = |service: &str, listen: &str| Upstream {
            service: Name::lookup(service),
            listen: Some(listen.parse().unwrap()),
            protocol: Protocol::Tcp,
            connect_timeout: None,
        };
        let proxy = |upstream| {
            let service = Name::lookup("web");
            let proxy =
                Proxy { service, instance: None, inbound: None, http_listener: None, upstreams: vec![upstream] };
            let Command::Sync(mut sync) = push("n1", 1, &["web-proxy"]) else { panic!("no push") };
            sync.instances[0].proxy = Some(proxy.into());
            check(&Command::Sync(sync), 10).map_err(|error| error.to_string())
        };
        assert_eq!(proxy(upstream("db", "127.0.0.1:5432")), Ok(()));
        let refused = proxy(upstream("db", "192.0.2.1:5432")).unwrap_err();
        assert!(refused.starts_with("instance web-proxy: 192.0.2.1:5432 is not a loopback address"), "{refused}");
        assert!(proxy(upstream("no spaces", "127.0.0.1:5432")).is_err());
        assert_eq!(check(&Command::SetFormat(9), 10), Err(DoorError::Internal("a catalog format")));
    }
}
