//! What the HTTP room asks of the agent, answered: LocalState, the registry's client, the proxies, readiness.

mod brakes;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use muster_catalog::{
    Check, CheckId, Freshness, Instance, InstanceId, Name, Node, Status, Text,
    port::{BoxFuture, Source},
};
use muster_http::port::{
    CheckDefinition as HttpCheck, ExpectedIdentity as HttpIdentity, Identity, LocalAgent, LocalError as HttpError,
    MemberInfo, MemberRole, Operator, Pending, Probe as HttpProbeKind, ProxyRefusal, ProxyResources, ProxyStatus,
    Readiness, ServiceRegistration, Talk as HttpTalk, Tls as HttpTls,
};
use muster_registry::{
    Agreement,
    client::{Client, RegistryStatus},
    raft::Leadership,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use brakes::BrakesPort;

use crate::{
    definition::{
        CheckDefinition, CheckText, ExpectedIdentity, FlapRules, HttpProbe, Probe, ServiceDefinition, SocketProbe,
        Talk, Thresholds, TlsOptions,
    },
    definitions::{Problem, RemovalHandle},
    identity::DataDirectory,
    local::{LocalError, LocalHandle, TtlUpdate},
    replica::Replica,
    sync::SyncStatus,
};

/// How long the registry may take to say who its members are: an election is ridden out, an outage is not.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);
/// Rows that `/readyz` names, of those that are refused and of definitions that are not taken up: what is shown to a
/// person; all of them are in the log.
const MAX_NOTICES: usize = 16;

/// How long a member may take to accept a connection before it counts as out of reach: they stand close to each other.
const REACH_PATIENCE: Duration = Duration::from_millis(500);

/// LocalState behind the HTTP room's port.
pub(crate) struct AgentPort {
    identity: Arc<Identity>,
    local: LocalHandle,
    replica: Arc<Replica>,
}

impl AgentPort {
    pub(crate) fn new(datacenter: &str, node: Node, local: LocalHandle, replica: Arc<Replica>) -> Self {
        let identity = Identity {
            name: node.name,
            id: node.id,
            address: node.address,
            datacenter: datacenter.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            meta: node.meta,
        };
        Self { identity: Arc::new(identity), local, replica }
    }

    /// Who writes reads it at once: the answer comes when what is read here shows the write.
    async fn shown(&self, outcome: Result<(), LocalError>) -> Result<(), HttpError> {
        outcome.map_err(refused)?;
        self.replica.shows(self.local.rows().generation).await;
        Ok(())
    }
}

impl LocalAgent for AgentPort {
    fn identity(&self) -> Arc<Identity> {
        self.identity.clone()
    }

    fn instances(&self) -> Vec<Arc<Instance>> {
        self.local.rows().instances.clone()
    }

    fn checks(&self) -> Vec<Arc<Check>> {
        self.local.rows().checks.clone()
    }

    fn register_service(&self, registration: ServiceRegistration) -> BoxFuture<'_, Result<(), HttpError>> {
        Box::pin(async move {
            let maintenance = registration.instance.maintenance.clone();
            let id = registration.instance.id.clone();
            let definition = service_definition(registration.instance, registration.checks, &self.identity)?;
            self.local.register_service(definition, registration.replace_existing_checks).await.map_err(refused)?;
            let outcome = match maintenance {
                Some(reason) => self.local.set_service_maintenance(&id, Some(reason)).await,
                None => Ok(()),
            };
            self.shown(outcome).await
        })
    }

    fn deregister_service(&self, id: InstanceId) -> BoxFuture<'_, Result<(), HttpError>> {
        Box::pin(async move { self.shown(self.local.deregister_service(&id).await).await })
    }

    fn register_check(&self, check: HttpCheck) -> BoxFuture<'_, Result<(), HttpError>> {
        Box::pin(async move {
            let definition = check_definition(check, &self.identity)?;
            self.shown(self.local.register_check(definition).await).await
        })
    }

    fn deregister_check(&self, id: CheckId) -> BoxFuture<'_, Result<(), HttpError>> {
        Box::pin(async move { self.shown(self.local.deregister_check(&id).await).await })
    }

    fn update_ttl(&self, id: CheckId, status: Status, output: Text) -> BoxFuture<'_, Result<(), HttpError>> {
        let update = TtlUpdate { status, output: output.to_string() };
        Box::pin(async move { self.shown(self.local.update_ttl(&id, update).await).await })
    }

    fn set_maintenance(&self, id: InstanceId, reason: Option<Text>) -> BoxFuture<'_, Result<(), HttpError>> {
        Box::pin(async move { self.shown(self.local.set_service_maintenance(&id, reason).await).await })
    }
}

fn refused(error: LocalError) -> HttpError {
    let text = error.to_string();
    match error {
        LocalError::UnknownService(_) | LocalError::UnknownCheck(_) => HttpError::NotFound(text),
        LocalError::OwnedByFile { .. } => HttpError::OwnedByFile(text),
        LocalError::Invalid(_) | LocalError::NotTakenUp(_) => HttpError::Invalid(text),
        LocalError::Storage(_) | LocalError::Stopping => HttpError::Storage(text),
    }
}

fn service_definition(
    instance: Instance,
    checks: Vec<HttpCheck>,
    node: &Identity,
) -> Result<ServiceDefinition, HttpError> {
    Ok(ServiceDefinition {
        id: instance.id,
        name: instance.service,
        tags: instance.tags,
        address: instance.address,
        tagged_addresses: instance.tagged_addresses,
        ports: instance.ports,
        meta: instance.meta,
        weights: instance.weights,
        locality: instance.locality,
        enable_tag_override: instance.enable_tag_override,
        proxy: instance.proxy,
        traffic: instance.traffic,
        checks: checks.into_iter().map(|check| check_definition(check, node)).collect::<Result<_, _>>()?,
    })
}

fn check_definition(check: HttpCheck, node: &Identity) -> Result<CheckDefinition, HttpError> {
    let probe = match check.probe {
        HttpProbeKind::Ttl { ttl } => Probe::Ttl { ttl },
        HttpProbeKind::Unit { name } => Probe::Systemd { unit: name },
        HttpProbeKind::Alias { node: Some(other), .. } if &*other != "_agent" && Name::lookup(&other) != node.name => {
            let (id, own) = (&check.id, node.name.as_str());
            let why =
                format!("check {id}: AliasNode {other:?} is another node: an alias follows checks of {own:?} only");
            return Err(HttpError::Invalid(why));
        }
        HttpProbeKind::Alias { service, .. } => Probe::Alias { service },
        HttpProbeKind::Socket { address, talk, tls, identity } => Probe::Socket(Box::new(SocketProbe {
            target: address,
            talk: talk_definition(talk),
            tls: tls.map(tls_options),
            certificate: identity.and_then(|identity| match identity {
                HttpIdentity::Certificate(name) => Some(name),
                HttpIdentity::Header { .. } => None,
            }),
            allow_link_local: false,
        })),
        HttpProbeKind::Http { url, method, headers, body, disable_redirects, tls, identity } => {
            Probe::Http(Box::new(HttpProbe {
                url,
                method,
                headers: single_headers(headers),
                body,
                follow_redirects: !disable_redirects,
                tls: tls_options(tls),
                identity: identity.map(|identity| match identity {
                    HttpIdentity::Header { name, value } => ExpectedIdentity::Header { name, value },
                    HttpIdentity::Certificate(name) => ExpectedIdentity::Certificate(name),
                }),
                allow_link_local: false,
            }))
        }
    };
    let thresholds = match &probe {
        // What an alias follows has passed thresholds already.
        Probe::Alias { .. } => Thresholds { rise: 1, fall: 1, warn_after: None },
        _ => Thresholds {
            rise: check.rise,
            fall: check.fall,
            warn_after: (check.failures_before_warning < check.fall).then_some(check.failures_before_warning),
        },
    };
    let flaps = match check.flap_damping {
        None => probe.default_flaps(),
        Some(damped) => damped.then(FlapRules::default),
    };
    let definition = CheckDefinition {
        flaps,
        id: check.id,
        instance: check.instance,
        name: check.name,
        notes: check.notes,
        probe,
        interval: check.interval,
        timeout: check.timeout,
        thresholds,
        initial: check.initial.unwrap_or(Status::Critical),
        deregister_critical_after: check.deregister_critical_after,
    };
    // One door for all: what would not be taken up after a restart is not taken up now.
    let text = CheckText::from(&definition);
    let valid = text.validate(&format!("check {}", definition.id), "", "", definition.instance.clone());
    valid.map_err(|error| HttpError::Invalid(error.to_string()))?;
    Ok(definition)
}

fn talk_definition(talk: HttpTalk) -> Talk {
    match talk {
        HttpTalk::Tcp => Talk::Tcp,
        HttpTalk::Udp { send, expect } => Talk::Udp { send, expect },
        HttpTalk::Grpc { service } => Talk::Grpc { service },
        HttpTalk::H2Ping => Talk::H2Ping,
        HttpTalk::Redis => Talk::Redis,
        HttpTalk::Postgres => Talk::Postgres,
        HttpTalk::Mysql => Talk::Mysql,
    }
}

fn tls_options(tls: HttpTls) -> TlsOptions {
    let server_name = Some(tls.server_name).filter(|name| !name.is_empty());
    TlsOptions { ca_file: None, server_name, skip_verify: tls.skip_verify }
}

/// Several values of one header are one line with commas (RFC 9110 §5.3).
fn single_headers(headers: BTreeMap<Text, Vec<Text>>) -> BTreeMap<Text, Text> {
    headers.into_iter().map(|(name, values)| (name, values.join(", ").into())).collect()
}

/// The registry's client and the proxies behind the HTTP room's port.
pub(crate) struct OperatorPort {
    pub(crate) client: Arc<Client>,
    pub(crate) proxies: muster_xds::Roster,
}

impl OperatorPort {
    /// What some member says; `None` when none answers in time, as in an outage.
    async fn status(&self) -> Option<RegistryStatus> {
        tokio::time::timeout(STATUS_PATIENCE, self.client.members()).await.ok()?.ok()
    }

    async fn registry_members(&self) -> Vec<MemberInfo> {
        let Some(status) = self.status().await else { return Vec::new() };
        let members = status.members.into_iter().map(|member| async move {
            MemberInfo {
                alive: is_reachable(&member.address).await,
                name: if member.name.is_empty() { format!("{:x}", member.id) } else { member.name },
                address: member.address,
                role: match (member.is_leader, member.voter) {
                    (true, _) => MemberRole::Leader,
                    (false, true) => MemberRole::Voter,
                    (false, false) => MemberRole::Learner,
                },
            }
        });
        futures_util::future::join_all(members).await
    }
}

async fn is_reachable(address: &str) -> bool {
    let connecting = tokio::net::TcpStream::connect(address);
    matches!(tokio::time::timeout(REACH_PATIENCE, connecting).await, Ok(Ok(_)))
}

impl Operator for OperatorPort {
    fn leader(&self) -> BoxFuture<'_, Option<String>> {
        Box::pin(async move {
            let status = self.status().await?;
            status.members.into_iter().find(|member| member.is_leader).map(|member| member.address)
        })
    }

    fn peers(&self) -> BoxFuture<'_, Vec<String>> {
        Box::pin(async move {
            let members = self.status().await.map(|status| status.members).unwrap_or_default();
            members.into_iter().map(|member| member.address).collect()
        })
    }

    fn members(&self) -> BoxFuture<'_, Vec<MemberInfo>> {
        Box::pin(self.registry_members())
    }

    fn xds_proxies(&self) -> Vec<ProxyStatus> {
        let proxies = self.proxies.proxies().into_iter().map(|proxy| ProxyStatus {
            id: proxy.node_id,
            cluster: proxy.cluster,
            address: proxy.peer.map(|peer| peer.to_string()).unwrap_or_default(),
            protocol: match proxy.variant {
                muster_xds::Variant::Sotw => "sotw".into(),
                muster_xds::Variant::Delta => "delta".into(),
            },
            resources: proxy.kinds.into_iter().map(|(kind, status)| resources(kind, status)).collect(),
        });
        proxies.collect()
    }
}

fn resources(kind: muster_xds::ResourceKind, status: muster_xds::KindStatus) -> ProxyResources {
    ProxyResources {
        type_url: kind.type_url().to_owned(),
        acknowledged: status.accepted,
        refused: status.rejected.map(|refused| ProxyRefusal { version: refused.version, error: refused.message }),
    }
}

/// What the process still waits for.
pub(crate) struct ReadinessPort {
    pub(crate) replica: Arc<Replica>,
    pub(crate) status: watch::Receiver<SyncStatus>,
    pub(crate) leaving: CancellationToken,
    pub(crate) removals: RemovalHandle,
    /// Definitions that are not taken up.
    pub(crate) problems: watch::Receiver<Arc<Vec<Problem>>>,
    pub(crate) data: Arc<DataDirectory>,
    pub(crate) local: LocalHandle,
}

impl Readiness for ReadinessPort {
    fn pending(&self) -> Vec<Pending> {
        let mut pending = Vec::new();
        let mut wait = |part: &str, reason: String| pending.push(Pending { part: part.into(), reason });
        if self.leaving.is_cancelled() {
            wait("agent", "it is stopping".into());
        }
        // A replica from disk answers, so it counts: only an empty one cannot serve.
        if self.replica.view().freshness == Freshness::Empty {
            wait("replica", "no registry member has sent the catalog yet".into());
        }
        let status = self.status.borrow();
        if !status.registered {
            let reason = status.problem.clone().unwrap_or_else(|| "the first push is under way".into());
            wait("registration", reason);
        } else if let Some(refusal) = status.problem.as_ref().filter(|_| status.refused) {
            // An outage is the registry's matter; what it refuses stays so until an operator acts.
            wait("registration", format!("the registry refuses this node's state: {refusal}"));
        }
        drop(status);
        if let Err(error) = self.data.check() {
            wait("data directory", error.to_string());
        }
        pending
    }

    fn notices(&self) -> Vec<Pending> {
        let held = self.removals.held.borrow();
        let held = held.iter().map(|hold| {
            let (services, id) = (hold.services.len(), &hold.id);
            let reason = format!("the removal of {services} services is held as {id}: see `muster brakes`");
            Pending { part: "definitions".into(), reason }
        });
        let refused = self.status.borrow().refused_rows.clone();
        let refused = refused.reasons().map(|(row, why)| Pending {
            part: "registration".into(),
            reason: format!("the registry refuses {row}: {why}"),
        });
        let problems = self.problems.borrow();
        let wrong = problems.iter().map(|problem| Pending { part: "definitions".into(), reason: problem.clone() });
        let damaged =
            self.local.damaged().iter().map(|reason| Pending { part: "data directory".into(), reason: reason.clone() });
        // What is held is answered from as long as nobody knows better.
        let behind = self.replica.refusal().map(|reason| Pending { part: "replica".into(), reason });
        let refused = refused.take(MAX_NOTICES);
        let damaged = damaged.take(MAX_NOTICES);
        behind.into_iter().chain(held).chain(damaged).chain(refused).chain(wrong.take(MAX_NOTICES)).collect()
    }
}

/// What a member of the registry that runs alone still waits for.
pub(crate) struct MemberReadiness {
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) agreement: watch::Receiver<Agreement>,
}

impl Readiness for MemberReadiness {
    fn pending(&self) -> Vec<Pending> {
        let now = self.leadership.borrow();
        let mut pending = Vec::new();
        let mut wait = |part: &str, reason: &str| pending.push(Pending { part: part.into(), reason: reason.into() });
        if now.leader.is_none() {
            wait("leader", "no member leads: a majority of registry.members has to be up and reachable");
        }
        if !now.recovered {
            wait("log", "what was on disk is being applied");
        }
        if let Some(found) = &self.agreement.borrow().own {
            wait("catalog", &found.why);
        }
        pending
    }
}
