//! `muster registry members`: who the members are and how they do; and what the removal of one would cost.

use std::time::Duration;

use futures_util::{StreamExt, stream::FuturesUnordered};
use muster_registry::{Client, ClientConfig, client::RegistryStatus, raft::Member};
use serde_json::{Value, json};

use super::{super::table, Failure, Outcome, RegistryArgs, client, runtime, say};

/// How long each member may take to say what it knows: it asks the leader, for a second at most.
const PATIENCE: Duration = Duration::from_secs(2);
/// With fewer voters than this the registry cannot lose any.
const FEW_VOTERS: usize = 3;

/// Prints the members.
pub(super) fn list(args: &RegistryArgs) -> Outcome {
    let (status, unanswered) = runtime()?.block_on(ask_all(&args.members));
    let Some(status) = status else {
        let why = unanswered.join("\n");
        return Err(Failure::Failed(format!(
            "{why}\nname members of the registry with --registry-addr or MUSTER_REGISTRY_ADDR"
        )));
    };
    if args.json {
        return say(&as_json(&status, &unanswered).to_string());
    }
    let rows = status.members.iter().map(|member| row(&status, member)).collect();
    say(&table::render(&["MEMBER", "ID", "ADDRESS", "ROLE", "HEALTH", "HEARD", "ENTRY", "FORMAT", "NOTE"], rows))?;
    say(&summary(&status))?;
    unanswered.iter().try_for_each(|why| say(why))
}

/// Asks all of them at once: what the leader says as soon as it is there, else the latest that any of them knows; and who
/// gave no answer.
async fn ask_all(members: &[String]) -> (Option<RegistryStatus>, Vec<String>) {
    let ask = |address: &String| {
        let config = ClientConfig::new(vec![address.clone()]);
        let config = ClientConfig { request_timeout: PATIENCE, write_deadline: PATIENCE, ..config };
        let (client, address) = (Client::new(config), address.clone());
        async move { client.members_by_leader().await.map_err(|error| format!("{address} gave no answer: {error}")) }
    };
    let mut asked: FuturesUnordered<_> = members.iter().map(ask).collect();
    let (mut latest, mut unanswered) = (None::<RegistryStatus>, Vec::new());
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(status) if status.failure_tolerance.is_some() => return (Some(status), unanswered),
            Ok(status) if latest.as_ref().is_none_or(|latest| latest.index < status.index) => latest = Some(status),
            Ok(_) => {}
            Err(why) => unanswered.push(why),
        }
    }
    (latest, unanswered)
}

/// Refuses a removal that makes the registry weaker, and says how.
pub(super) fn check_removal(member: &str, args: &RegistryArgs) -> Outcome {
    let status = runtime()?.block_on(client(args).members_by_leader()).map_err(Failure::failed)?;
    match removal_cost(&status, member) {
        None => Ok(()),
        Some(cost) => Err(Failure::Usage(format!(
            "nothing was done. {cost}. Put another member in its place with `muster registry replace {member} HOST:PORT`, or \
             run it again with --yes"
        ))),
    }
}

/// What the registry would lose with this member; `None` where it is none of weight, or not there.
fn removal_cost(status: &RegistryStatus, member: &str) -> Option<String> {
    let is_it = |one: &&Member| one.name == member || format!("{:016x}", one.id) == member;
    let goes = status.members.iter().find(is_it).filter(|goes| goes.voter)?;
    let healthy = |member: &Member| {
        let serves = !status.faults.contains_key(&member.id);
        serves && status.health.get(&member.id).is_none_or(|health| health.healthy)
    };
    // How many voters there are, and how many of them may be lost.
    let strength = |without: Option<u64>| {
        let voters: Vec<_> = status.members.iter().filter(|one| one.voter && Some(one.id) != without).collect();
        let healthy = voters.iter().filter(|one| healthy(one)).count();
        (voters.len(), healthy.saturating_sub(voters.len() / 2 + 1))
    };
    let ((before, spare_before), (after, spare)) = (strength(None), strength(Some(goes.id)));
    (after < FEW_VOTERS || spare < spare_before).then(|| {
        let name = if goes.name.is_empty() { member } else { &goes.name };
        format!(
            "{name} is one of {before} voters, of which {spare_before} may be lost; without it there are {after}, of which \
             {spare} may be lost"
        )
    })
}

fn role(member: &Member) -> &'static str {
    match member {
        Member { is_leader: true, .. } => "leader",
        Member { voter: true, .. } => "voter",
        Member { read_only: true, .. } => "reader",
        _ => "learner",
    }
}

fn row(status: &RegistryStatus, member: &Member) -> Vec<String> {
    let health = status.health.get(&member.id);
    let fault = status.faults.get(&member.id).map(String::as_str);
    let shown = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        member.name.clone(),
        format!("{:016x}", member.id),
        member.address.clone(),
        role(member).to_owned(),
        match fault {
            Some(_) => "serves nothing".to_owned(),
            None => shown(health.map(|health| if health.healthy { "healthy" } else { "not healthy" }.to_owned())),
        },
        shown(health.and_then(|health| health.silent).map(ago)),
        shown(health.map(|health| health.matched.to_string())),
        shown(health.filter(|health| health.format > 0).map(|health| health.format.to_string())),
        match fault {
            Some(fault) => fault.to_owned(),
            None => health.map(|health| health.note.clone()).unwrap_or_default(),
        },
    ]
}

fn ago(silent: Duration) -> String {
    match silent.as_secs() {
        0 => format!("{} ms ago", silent.as_millis()),
        seconds => format!("{seconds} s ago"),
    }
}

fn summary(status: &RegistryStatus) -> String {
    let registry = format!(
        "registry {}, incarnation {}, catalog format {}, index {}",
        status.cluster.uuid, status.cluster.incarnation, status.format, status.index
    );
    match status.failure_tolerance {
        Some(0) => {
            format!("{registry}\nNo more voter may be lost: bring those back that are not healthy, or add members.")
        }
        Some(1) => format!("{registry}\n1 more voter may be lost."),
        Some(more) => format!("{registry}\n{more} more voters may be lost."),
        None => {
            format!("{registry}\nNo leader answers: this is what one member knows, and nobody says how the others are.")
        }
    }
}

fn as_json(status: &RegistryStatus, unanswered: &[String]) -> Value {
    let members = status.members.iter().map(|member| {
        let health = status.health.get(&member.id);
        json!({
            "id": format!("{:016x}", member.id),
            "name": member.name,
            "address": member.address,
            "role": role(member),
            "voter": member.voter,
            "healthy": health.map(|health| health.healthy),
            "heard_milliseconds": health.and_then(|health| health.silent).map(|silent| silent.as_millis() as u64),
            "entry": health.map(|health| health.matched),
            "format": health.map(|health| health.format),
            "version": health.map(|health| health.version.clone()),
            "note": health.map(|health| health.note.clone()),
            "fault": status.faults.get(&member.id),
        })
    });
    json!({
        "members": members.collect::<Vec<_>>(),
        "registry": &*status.cluster.uuid,
        "incarnation": status.cluster.incarnation,
        "format": status.format,
        "index": status.index,
        "term": status.term,
        "failure_tolerance": status.failure_tolerance,
        "unanswered": unanswered,
    })
}

#[cfg(test)]
mod tests {
    use muster_registry::client::MemberHealth;

    use super::*;

    fn status(members: &[(&str, bool, bool)]) -> RegistryStatus {
        let member = |(id, (name, voter, _)): (u64, &(&str, bool, bool))| {
            let (name, address) = ((*name).to_owned(), "127.0.0.1:1".to_owned());
            Member { id, name, address, voter: *voter, read_only: !*voter, is_leader: id == 0 }
        };
        let health = |(id, (.., healthy)): (u64, &(&str, bool, bool))| {
            (id, MemberHealth { healthy: *healthy, ..MemberHealth::default() })
        };
        RegistryStatus {
            members: (0..).zip(members).map(member).collect(),
            answered_by: 0,
            term: 1,
            index: 1,
            cluster: Default::default(),
            held_expiries: 0,
            format: 1,
            failure_tolerance: Some(0),
            health: (0..).zip(members).map(health).collect(),
            faults: Default::default(),
        }
    }

    #[test]
    fn a_removal_that_makes_the_registry_weaker_is_asked_about() {
        let (well, dead, reader) = ((true, true), (true, false), (false, true));
        let registry = |members: &[(bool, bool)]| {
            let names = ["a", "b", "c", "d", "e", "f"];
            status(
                &names
                    .iter()
                    .zip(members)
                    .map(|(name, (voter, healthy))| (*name, *voter, *healthy))
                    .collect::<Vec<_>>(),
            )
        };
        for (members, goes, expected) in [
            (
                &[well, well, well][..],
                "b",
                Some("b is one of 3 voters, of which 1 may be lost; without it there are 2, of"),
            ),
            (&[well, well, well], "0000000000000001", Some("b is one of 3")),
            (&[well, well], "b", Some("without it there are 1")),
            (&[well, well, dead], "c", Some("of which 0 may be lost; without it there are 2")),
            (
                &[well, well, well, well, well],
                "b",
                Some("of which 2 may be lost; without it there are 4, of which 1 may"),
            ),
            // One more than is needed, one that is dead, one without a vote, one that is not there.
            (&[well, well, well, well], "b", None),
            (&[well, well, well, dead], "d", None),
            (&[well, well, well, reader], "d", None),
            (&[well, well, well], "x", None),
        ] {
            let cost = removal_cost(&registry(members), goes);
            match expected {
                Some(expected) => {
                    assert!(cost.as_ref().is_some_and(|cost| cost.contains(expected)), "{goes}: {cost:?}")
                }
                None => assert_eq!(cost, None, "{goes} of {members:?}"),
            }
        }
    }

    #[tokio::test]
    async fn one_that_is_silent_is_named_and_holds_up_no_answer() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let members = [silent.local_addr().unwrap().to_string(), gone.to_string()];
        let begun = std::time::Instant::now();
        let (status, unanswered) = ask_all(&members).await;
        assert!(status.is_none() && begun.elapsed() < 2 * PATIENCE, "{status:?} after {:?}", begun.elapsed());
        assert!(
            unanswered.iter().any(|why| why.contains(&members[0]) && why.contains("no answer within")),
            "{unanswered:?}"
        );
        assert!(unanswered.iter().any(|why| why.contains(&members[1]) && why.contains("refused")), "{unanswered:?}");
    }
}
