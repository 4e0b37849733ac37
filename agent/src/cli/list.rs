//! `services`, `nodes`, `members`: what the agent knows, as tables or JSON.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    ApiArgs, Failure, Outcome,
    client::{Answer, Api},
    say, table,
};

pub(super) fn services(name: Option<&str>, args: &ApiArgs) -> Outcome {
    let api = Api::new(args)?;
    match name {
        Some(name) => {
            let answer = api.get(&format!("/v1/health/service/{name}?stale"))?;
            print(args, &answer, "no instance of it is registered", &INSTANCE_HEAD, instance_rows(&answer.body))
        }
        None => {
            let answer = api.get("/v1/catalog/services?stale")?;
            // With the registry out of reach an agent knows the checks of the services it holds only.
            let checks = api.get("/v1/health/state/any?stale");
            if let Err(Failure::Usage(why) | Failure::Failed(why)) = &checks {
                super::complain(&format!("the checks are not known here now: {why}"));
            }
            let rows = service_rows(&answer.body, checks.ok().map(|checks| checks.body).as_ref());
            print(args, &answer, "no service is registered", &["SERVICE", "CHECKS", "TAGS"], rows)
        }
    }
}

pub(super) fn nodes(args: &ApiArgs) -> Outcome {
    let api = Api::new(args)?;
    let answer = api.get("/v1/catalog/nodes?stale")?;
    let members = api.get("/v1/agent/members")?;
    let rows = list(&answer.body).iter().map(|node| {
        let name = text(node, "Node");
        let agents = list(&members.body).iter().filter(|member| member["Tags"]["role"] == "node");
        let liveness = agents
            .into_iter()
            .find(|agent| text(agent, "Name") == name)
            .map_or("no agent", |agent| if agent["Status"] == 1 { "passing" } else { "critical" });
        let liveness = liveness.to_owned();
        vec![name, text(node, "Address"), liveness]
    });
    print(args, &answer, "no node is registered", &["NODE", "ADDRESS", "AGENT"], rows.collect())
}

pub(super) fn members(args: &ApiArgs) -> Outcome {
    let answer = Api::new(args)?.get("/v1/muster/members")?;
    let rows = list(&answer.body).iter().map(|member| {
        let answers = if member["Alive"] == true { "yes" } else { "no" };
        vec![text(member, "Name"), text(member, "Address"), text(member, "Role"), answers.to_owned()]
    });
    print(
        args,
        &answer,
        "no member of the registry is known",
        &["MEMBER", "ADDRESS", "ROLE", "ANSWERS"],
        rows.collect(),
    )
}

/// The head of a list of instances.
pub(super) const INSTANCE_HEAD: [&str; 6] = ["ID", "NODE", "ADDRESS", "STATUS", "TAGS", "OUTPUT"];

/// A row for each entry of a `health/service` answer.
pub(super) fn instance_rows(body: &Value) -> Vec<Vec<String>> {
    list(body)
        .iter()
        .map(|entry| {
            let (node, service) = (&entry["Node"], &entry["Service"]);
            let own = text(service, "Address");
            let address = if own.is_empty() { text(node, "Address") } else { own };
            let worst = list(&entry["Checks"]).iter().max_by_key(|check| severity(&text(check, "Status")));
            let status = worst.map_or_else(|| "passing".into(), |check| text(check, "Status"));
            let output = worst.filter(|_| status != "passing").map(|check| first_line(&text(check, "Output")));
            vec![
                text(service, "ID"),
                text(node, "Node"),
                format!("{address}:{}", service["Port"].as_u64().unwrap_or(0)),
                status,
                tags(&service["Tags"]),
                output.unwrap_or_default(),
            ]
        })
        .collect()
}

fn service_rows(services: &Value, checks: Option<&Value>) -> Vec<Vec<String>> {
    let mut counts: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for check in checks.into_iter().flat_map(list) {
        *counts.entry(text(check, "ServiceName")).or_default().entry(text(check, "Status")).or_default() += 1;
    }
    let services = services.as_object().into_iter().flatten();
    services
        .map(|(name, of)| {
            let counted = counts.get(name).map(|by_status| {
                let each = by_status.iter().map(|(status, count)| format!("{count} {status}"));
                each.collect::<Vec<_>>().join(", ")
            });
            vec![
                name.clone(),
                counted.unwrap_or_else(|| if checks.is_some() { "none".into() } else { "unknown".into() }),
                tags(of),
            ]
        })
        .collect()
}

fn print(args: &ApiArgs, answer: &Answer, nothing: &str, head: &[&str], rows: Vec<Vec<String>>) -> Outcome {
    if args.json {
        return say(&answer.body.to_string());
    }
    if let Some(age) = answer.stale_ms {
        super::complain(&format!("the registry is out of reach: this is what was known {}s ago", age / 1_000));
    }
    if rows.is_empty() { say(nothing) } else { say(&table::render(head, rows)) }
}

fn severity(status: &str) -> u8 {
    match status {
        "passing" => 0,
        "warning" => 1,
        _ => 2,
    }
}

fn first_line(output: &str) -> String {
    output.lines().next().unwrap_or_default().chars().take(60).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn tags(value: &Value) -> String {
    list(value).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}
